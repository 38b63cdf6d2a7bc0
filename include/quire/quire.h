// The umbrella header: everything public in one include.
#pragma once

#include "quire/version.h"
