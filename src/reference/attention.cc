// The float64 reference: one softmax over all visible keys, row by row.
#include "reference/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/convert.h"
#include "kv/addressing.h"
#include "variant/logit.h"
#include "variant/number.h"

namespace quire::reference {
namespace {

using Real = Scalar<double>;

// One query row of one q_head.
struct Row {
  std::int32_t seq = 0;
  std::int32_t row = 0;    // inside the sequence
  std::int64_t token = 0;  // in the batch
  std::int32_t q_head = 0;
  std::int32_t stream = 0;
  std::int32_t kv_head = 0;
};

double load_row_value(const KVSource& kv, const KVRows& rows, KVPlace place, std::int32_t kv_head, std::int32_t d) {
  const double stored = load_as_float(rows.data, kv.dtype, row_offset(rows, place, kv_head) + d);
  return stored * rows.tensor_scale * row_scale(rows, place, kv_head);
}

double dot(const AttentionArgs& args, const Row& at, KVPlace place) {
  const std::int64_t query = at.token * args.query_token_stride + at.q_head * args.query_head_stride;
  double sum = 0.0;
  for (std::int32_t d = 0; d < args.kv.head_size; ++d) {
    sum += static_cast<double>(load_as_float(args.query, args.query_dtype, query + d)) *
           load_row_value(args.kv, args.kv.key[at.stream], place, at.kv_head, d);
  }
  return sum * args.query_scale;
}

// The softmax-weighted values of one row, [num_streams * head_size_v]; returns the log-sum-exp.
double attend(const AttentionArgs& args, const Row& at, std::vector<double>& out) {
  const Terms terms = terms_of(args.variant, at.seq);
  const std::int32_t seq_len = args.seq_lens[at.seq];
  const std::int32_t query_len = args.query_start_loc[at.seq + 1] - args.query_start_loc[at.seq];
  const std::int32_t context_len = seq_len - query_len;
  const double hidden = -std::numeric_limits<double>::infinity();
  std::vector<double> logits(static_cast<std::size_t>(std::max(seq_len, 0)), hidden);
  const double sink = terms.sink.active() ? static_cast<double>(terms.sink.sink(at.q_head)) : hidden;
  double largest = sink;
  for (std::int32_t kv_pos = 0; kv_pos < seq_len; ++kv_pos) {
    const At<Real> where{kv_pos, context_len + at.row, at.row, context_len, at.q_head};
    if (!fold_keep<Real>(terms, true, where)) continue;
    const double scaled = args.variant.scale * dot(args, at, kv_place(args.kv, at.seq, kv_pos));
    double& logit = logits[static_cast<std::size_t>(kv_pos)];
    logit = fold_logit<Real>(terms, scaled, where);
    largest = std::max(largest, logit);
  }
  std::fill(out.begin(), out.end(), 0.0);
  if (largest == hidden) return hidden;
  double sum = std::exp(sink - largest);
  for (std::int32_t kv_pos = 0; kv_pos < seq_len; ++kv_pos) {
    const double logit = logits[static_cast<std::size_t>(kv_pos)];
    if (logit == hidden) continue;
    const double weight = std::exp(logit - largest);
    const KVPlace place = kv_place(args.kv, at.seq, kv_pos);
    sum += weight;
    for (std::int32_t d = 0; d < static_cast<std::int32_t>(out.size()); ++d) {
      const KVRows& rows = args.kv.value[d / args.kv.head_size_v];
      out[static_cast<std::size_t>(d)] +=
          weight * load_row_value(args.kv, rows, place, at.kv_head, d % args.kv.head_size_v);
    }
  }
  for (double& value : out) value /= sum;
  return largest + std::log(sum);
}

// O1 - lambda * O2, then the sub-layer RMSNorm and the post scale.
void combine(const DifferentialCombine& tail, const std::vector<double>& first, const std::vector<double>& second,
             double* out) {
  const std::size_t size = first.size();
  double squares = 0.0;
  for (std::size_t d = 0; d < size; ++d) {
    out[d] = first[d] - static_cast<double>(tail.lambda) * second[d];
    squares += out[d] * out[d];
  }
  if (tail.subln_weight == nullptr) return;
  const double norm = 1.0 / std::sqrt(squares / static_cast<double>(size) + static_cast<double>(tail.eps));
  for (std::size_t d = 0; d < size; ++d) out[d] *= norm * tail.subln_weight[d] * tail.post_scale;
}

// The rows of one token: every q_head, or every pair of q_heads.
void attend_token(const AttentionArgs& args, Row at, double* out, double* lse) {
  const std::int32_t streams = args.kv.num_streams;
  const std::int32_t groups = args.num_q_heads / streams;  // heads, or pairs of heads
  const std::int32_t group_size = groups / args.kv.num_kv_heads;
  std::vector<double> rows[2];
  for (auto& row : rows) row.resize(static_cast<std::size_t>(streams) * static_cast<std::size_t>(args.kv.head_size_v));
  for (std::int32_t group = 0; group < groups; ++group) {
    at.kv_head = group / group_size;
    for (at.stream = 0; at.stream < streams; ++at.stream) {
      at.q_head = group * streams + at.stream;
      const double row_lse = attend(args, at, rows[at.stream]);
      if (lse != nullptr) lse[static_cast<std::int64_t>(at.q_head) * args.num_tokens + at.token] = row_lse;
    }
    double* target =
        out + (at.token * args.num_q_heads + static_cast<std::int64_t>(group) * streams) * args.kv.head_size_v;
    if (streams == 2) {
      combine(args.differential, rows[0], rows[1], target);
    } else {
      std::copy(rows[0].begin(), rows[0].end(), target);
    }
  }
}

float clamp_e4m3(float value) { return std::clamp(value, -448.0f, 448.0f); }

// Quantises one token's flattened row in groups of 128 with a scale each.
void store_block_scaled(const AttentionArgs& args, std::int64_t token, const double* row) {
  const std::int32_t width = args.num_q_heads * args.kv.head_size_v;
  for (std::int32_t begin = 0; begin < width; begin += 128) {
    const std::int32_t end = std::min(begin + 128, width);
    double largest = 0.0;
    for (std::int32_t i = begin; i < end; ++i) largest = std::max(largest, std::abs(row[i]));
    const float scale = static_cast<float>(largest) / 448.0f;
    args.output_block_scale[token * args.output_block_scale_stride + begin / 128] = scale;
    for (std::int32_t i = begin; i < end; ++i) {
      const float value = scale > 0.0f ? static_cast<float>(row[i] / scale) : 0.0f;
      const std::int64_t head = i / args.kv.head_size_v;
      store_from_float(args.output, args.output_dtype,
                       token * args.output_token_stride + head * args.output_head_stride + i % args.kv.head_size_v,
                       clamp_e4m3(value));
    }
  }
}

void store_token(const AttentionArgs& args, std::int64_t token, const double* row) {
  if (args.output_block_scale != nullptr) return store_block_scaled(args, token, row);
  for (std::int32_t head = 0; head < args.num_q_heads; ++head) {
    for (std::int32_t d = 0; d < args.kv.head_size_v; ++d) {
      float value = static_cast<float>(row[static_cast<std::int64_t>(head) * args.kv.head_size_v + d]);
      if (args.output_scale > 0.0f) value = clamp_e4m3(value * (1.0f / args.output_scale));
      store_from_float(args.output, args.output_dtype,
                       token * args.output_token_stride + head * args.output_head_stride + d, value);
    }
  }
}

}  // namespace

void attention_double(const AttentionArgs& args, double* out, double* lse) {
  for (std::int32_t seq = 0; seq < args.num_seqs; ++seq) {
    for (std::int32_t token = args.query_start_loc[seq]; token < args.query_start_loc[seq + 1]; ++token) {
      attend_token(args, {.seq = seq, .row = token - args.query_start_loc[seq], .token = token}, out, lse);
    }
  }
}

void attention(const AttentionArgs& args) {
  const std::size_t tokens = static_cast<std::size_t>(args.num_tokens);
  const std::size_t heads = static_cast<std::size_t>(args.num_q_heads);
  const std::size_t width = heads * static_cast<std::size_t>(args.kv.head_size_v);
  std::vector<double> out(tokens * width);
  std::vector<double> lse(args.lse != nullptr ? heads * tokens : 0);
  attention_double(args, out.data(), args.lse != nullptr ? lse.data() : nullptr);
  for (std::size_t token = 0; token < tokens; ++token) {
    store_token(args, static_cast<std::int64_t>(token), out.data() + token * width);
    for (std::size_t head = 0; args.lse != nullptr && head < heads; ++head) {
      args.lse[static_cast<std::int64_t>(head) * args.lse_head_stride + static_cast<std::int64_t>(token)] =
          static_cast<float>(lse[head * tokens + token]);
    }
  }
}

}  // namespace quire::reference
