// The umbrella header: everything public in one include.
#pragma once

#include "quire/attention.h"
#include "quire/backend.h"
#include "quire/block_pool.h"
#include "quire/device.h"
#include "quire/dtype.h"
#include "quire/kv_cache.h"
#include "quire/metadata.h"
#include "quire/ops.h"
#include "quire/plan.h"
#include "quire/runtime.h"
#include "quire/status.h"
#include "quire/tensor.h"
#include "quire/tree.h"
#include "quire/tree_draft.h"
#include "quire/variant.h"
#include "quire/version.h"
