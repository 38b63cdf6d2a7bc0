// Implements Linear. A call reads the weights once (in x out elements) and does 2 x rows x in x out operations; few
// rows are bound by the weights' bytes, many by the multiplications.
#include "models/linear.h"

#include <algorithm>
#include <bit>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <unordered_map>
#include <utility>

#include "core/checked.h"
#include "core/convert.h"
#include "models/threads.h"

namespace quire {
namespace {

using Type = dnnl::memory::data_type;
using Tag = dnnl::memory::format_tag;

constexpr std::int64_t kLargestCall = 256;
static_assert(kRowPadding % kLargestCall == 0 && kRowPadding % kFixedRowTile == 0);

dnnl::engine& cpu() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

Type type_of(DType dtype) { return dtype == DType::kBFloat16 ? Type::bf16 : Type::f32; }

// A call with fewer products than this, some 60 us, runs on one thread: waking others takes almost as long.
constexpr std::int64_t kSerialGemmProducts = std::int64_t{3} << 21;

Status dnnl_error(const dnnl::error& error) { return internal_error(std::string("oneDNN: ") + error.what()); }

}  // namespace

bool has_bfloat16_linear() { return dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core; }

struct Linear::State {
  std::int64_t in = 0;
  std::int64_t out = 0;
  DType compute = DType::kFloat32;
  RowTiling tiling = RowTiling::kByCount;
  dnnl::memory weights;
  dnnl::memory bias;
  dnnl::stream stream{cpu()};
  // A primitive with its arguments, of which a call changes only where the rows are.
  struct Call {
    dnnl::matmul primitive;
    dnnl::memory from;
    dnnl::memory to;
    std::unordered_map<int, dnnl::memory> arguments;
  };
  // By rows of a call and the type of its output.
  std::map<std::pair<std::int64_t, DType>, Call> calls;

  dnnl::matmul::primitive_desc describe(std::int64_t rows, DType to, const dnnl::memory::desc& weights_desc) const {
    const dnnl::memory::desc x({rows, in}, type_of(compute), Tag::ab);
    const dnnl::memory::desc y({rows, out}, type_of(to), Tag::ab);
    if (!bias) return {dnnl::matmul::desc(x, weights_desc, y), cpu()};
    return {dnnl::matmul::desc(x, weights_desc, bias.get_desc(), y), cpu()};
  }

  Call& call(std::int64_t rows, DType to) {
    const auto key = std::pair(rows, to);
    auto found = calls.find(key);
    if (found != calls.end()) return found->second;
    // oneDNN decides on its threads when a primitive is made.
    const ThreadCount threads(rows * in * out < kSerialGemmProducts ? 1 : omp_get_max_threads());
    const auto description = describe(rows, to, weights.get_desc());
    Call made{.primitive = dnnl::matmul(description),
              .from = dnnl::memory(description.src_desc(), cpu(), nullptr),
              .to = dnnl::memory(description.dst_desc(), cpu(), nullptr),
              .arguments = {}};
    made.arguments = {{DNNL_ARG_SRC, made.from}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_DST, made.to}};
    if (bias) made.arguments.emplace(DNNL_ARG_BIAS, bias);
    return calls.emplace(key, std::move(made)).first->second;
  }

  void load(const LinearWeights& source);
};

// Stacks the parts as rows [out, in] in the compute type and lets oneDNN reorder them.
void Linear::State::load(const LinearWeights& source) {
  const std::int64_t element = dtype_bytes(compute);
  std::vector<std::byte> staged(static_cast<std::size_t>(in * out * element));
  std::vector<std::pair<std::size_t, std::int64_t>> place;  // stacked output -> part, row of it
  for (std::size_t p = 0; p < source.parts.size(); ++p) {
    const std::int64_t rows = source.parts[p].size(source.order == WeightOrder::kOutIn ? 0 : 1);
    for (std::int64_t r = 0; r < rows; ++r) place.emplace_back(p, r);
  }
  std::vector<float> ordered(source.bias.size());
  for (std::int64_t o = 0; o < out; ++o) {
    const std::int64_t from = source.outputs.empty() ? o : source.outputs[static_cast<std::size_t>(o)];
    const auto [p, r] = place[static_cast<std::size_t>(from)];
    const TensorView& part = source.parts[p];
    const std::int64_t step = source.order == WeightOrder::kOutIn ? 1 : part.size(1);
    const std::int64_t first = source.order == WeightOrder::kOutIn ? r * in : r;
    if (step == 1 && part.dtype == compute) {
      const std::byte* row = static_cast<const std::byte*>(part.data) + first * element;
      std::copy(row, row + in * element, staged.begin() + static_cast<std::ptrdiff_t>(o * in * element));
    } else {
      for (std::int64_t i = 0; i < in; ++i) {
        store_from_float(staged.data(), compute, o * in + i, load_as_float(part.data, part.dtype, first + i * step));
      }
    }
    if (!ordered.empty()) ordered[static_cast<std::size_t>(o)] = source.bias[static_cast<std::size_t>(from)];
  }
  if (!ordered.empty()) {
    bias = dnnl::memory({{1, out}, Type::f32, Tag::ab}, cpu());
    std::copy(ordered.begin(), ordered.end(), static_cast<float*>(bias.get_data_handle()));
  }
  const dnnl::memory::desc any({in, out}, type_of(compute), Tag::any);
  const std::int64_t rows = tiling == RowTiling::kFixed ? kFixedRowTile : 64;
  weights = dnnl::memory(describe(rows, DType::kFloat32, any).weights_desc(), cpu());
  dnnl::memory plain({{in, out}, type_of(compute), Tag::ba}, cpu(), staged.data());
  dnnl::reorder(plain, weights).execute(stream, plain, weights);
  stream.wait();
}

Result<Linear> Linear::create(const LinearWeights& weights, DType compute, RowTiling tiling) {
  if (compute != DType::kFloat32 && compute != DType::kBFloat16) {
    return invalid_argument("compute: want float32 or bfloat16, got " + std::string(dtype_name(compute)));
  }
  if (compute == DType::kBFloat16 && !has_bfloat16_linear()) {
    return unsupported("compute: bfloat16 linear layers want a processor with AVX-512; ask for float32");
  }
  auto state = std::make_unique<State>();
  const bool out_first = weights.order == WeightOrder::kOutIn;
  for (const TensorView& part : weights.parts) {
    if (part.rank != 2 || !part.is_contiguous() || !is_activation(part.dtype)) {
      return invalid_argument("weight: want a contiguous matrix of an activation type, got " + shape_string(part));
    }
    state->in = part.size(out_first ? 1 : 0);
    state->out += part.size(out_first ? 0 : 1);
  }
  for (const TensorView& part : weights.parts) {
    if (part.size(out_first ? 1 : 0) != state->in) {
      return invalid_argument("weight: want parts of " + std::to_string(state->in) + " inputs, got " +
                              shape_string(part));
    }
  }
  const auto out = static_cast<std::size_t>(state->out);
  if (state->in < 1 || state->out < 1 || (!weights.bias.empty() && weights.bias.size() != out) ||
      (!weights.outputs.empty() && weights.outputs.size() != out)) {
    return invalid_argument("weight: want a bias and an order of " + std::to_string(out) + " outputs");
  }
  state->compute = compute;
  state->tiling = tiling;
  try {
    state->load(weights);
  } catch (const dnnl::error& error) {
    return dnnl_error(error);
  }
  return Linear(std::move(state));
}

Status Linear::run(const Rows& x, std::int64_t num_rows, const Rows& y) const {
  State& state = *state_;
  if (x.dtype != state.compute || x.width != state.in || y.width != state.out ||
      (y.dtype != DType::kFloat32 && y.dtype != state.compute)) {
    return internal_error("linear layer: want rows of " + std::to_string(state.in) + " to " +
                          std::to_string(state.out) + " elements, got " + std::to_string(x.width) + " to " +
                          std::to_string(y.width));
  }
  try {
    for (std::int64_t row = 0; row < num_rows;) {
      const auto left = static_cast<std::uint64_t>(num_rows - row);
      const std::int64_t rows =
          state.tiling == RowTiling::kFixed
              ? kFixedRowTile
              : static_cast<std::int64_t>(std::min<std::uint64_t>(std::bit_ceil(left), kLargestCall));
      State::Call& call = state.call(rows, y.dtype);
      call.from.set_data_handle(x.from(row).data);
      call.to.set_data_handle(y.from(row).data);
      call.primitive.execute(state.stream, call.arguments);
      row += rows;
    }
    state.stream.wait();
  } catch (const dnnl::error& error) {
    return dnnl_error(error);
  }
  return {};
}

std::int64_t Linear::in_features() const { return state_->in; }
std::int64_t Linear::out_features() const { return state_->out; }
std::int64_t Linear::weight_bytes() const { return static_cast<std::int64_t>(state_->weights.get_desc().get_size()); }

Linear::Linear(std::unique_ptr<State> state) : state_(std::move(state)) {}
Linear::Linear(Linear&&) noexcept = default;
Linear& Linear::operator=(Linear&&) noexcept = default;
Linear::~Linear() = default;

}  // namespace quire
