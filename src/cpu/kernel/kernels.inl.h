// All kernel bodies, in the order in which they build on each other, after the vocabulary of an ISA.
#pragma once

#include "core/convert.h"
#include "cpu/kernel_table.h"
#include "kv/addressing.h"
#include "variant/logit.h"
// The bodies see the vocabulary `Simd` that the ISA's file has included before.
#include "cpu/kernel/math.inl.h"
//
#include "cpu/kernel/compute.inl.h"
//
#include "cpu/kernel/codec.inl.h"
#include "cpu/kernel/gemm.inl.h"
#include "cpu/kernel/softmax.inl.h"
#include "cpu/kernel/state.inl.h"
//
#include "cpu/kernel/attend.inl.h"
//
#include "cpu/kernel/table.inl.h"
