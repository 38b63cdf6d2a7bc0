// Which partial results belong to a row tile, and where the split kernels left them.
#pragma once

#include "cuda/block/schedule.h"

namespace quire::cuda {

// The partial results of a row tile, in ascending key order.
struct Partials {
  std::int32_t entry = 0;
  std::int32_t count = 0;  // at most 1: nothing to fold
  std::int32_t first_unit = 0;
  std::int32_t first_group = 0;
  std::int32_t total = 0;
  bool at_group_begin = false;
  bool single_units = false;  // fewer units than groups: every unit is a share of its own
};

// Of the row tile `entry` that has the units `units` of `total` on the line, balanced.
__device__ inline Partials partials_of_units(const ScheduleShape& shape, std::int32_t entry, KeyRange units,
                                             std::int32_t total) {
  if (units.begin == units.end) return {};
  const bool single = total < shape.num_groups;
  const std::int32_t first = group_of_unit(units.begin, total, shape.num_groups);
  return {.entry = entry,
          .count = single ? units.end - units.begin : group_of_unit(units.end - 1, total, shape.num_groups) - first + 1,
          .first_unit = units.begin,
          .first_group = first,
          .total = total,
          .at_group_begin = first_unit_of_group(first, total, shape.num_groups) == units.begin,
          .single_units = single};
}

__device__ inline std::int64_t slot_of(const SplitParams& params, const Partials& partials, std::int32_t kv_head,
                                       std::int32_t i) {
  const std::int32_t heads = params.args.kv.num_kv_heads;
  if (params.shape.is_fixed()) return static_cast<std::int64_t>(partials.first_unit + i) * heads + kv_head;
  const std::int32_t group = partials.single_units
                                 ? group_of_unit(partials.first_unit + i, partials.total, params.shape.num_groups)
                                 : partials.first_group + i;
  const bool is_second = i == 0 && !partials.at_group_begin;
  return 2 * (static_cast<std::int64_t>(group) * heads + kv_head) + (is_second ? 1 : 0);
}

}  // namespace quire::cuda
