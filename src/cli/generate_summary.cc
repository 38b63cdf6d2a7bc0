// Implements the closing summary.
#include "cli/generate_summary.h"

namespace quire::cli {
namespace {

double rate(double count, double seconds) { return seconds > 0.0 ? count / seconds : 0.0; }
std::string percent(double part, double whole) { return fixed(whole > 0.0 ? 100.0 * part / whole : 0.0, 1) + " %"; }

std::string bytes_text(std::int64_t bytes) { return fixed(static_cast<double>(bytes) / (1 << 20), 1) + " MiB"; }

double total_seconds(const EngineStats& stats) { return stats.prefill_seconds + stats.decode_seconds; }

// New tokens a pass of the target model, for each request that took part.
double tokens_a_step(const EngineStats& stats) {
  return rate(static_cast<double>(stats.generated_tokens), static_cast<double>(stats.decode_rows));
}

std::string depths_text(const SpeculationStats& stats) {
  std::string out;
  for (std::size_t depth = 0; depth < stats.offered_by_depth.size(); ++depth) {
    out += (depth == 0 ? "" : ", ") + percent(static_cast<double>(stats.accepted_by_depth[depth]),
                                              static_cast<double>(stats.offered_by_depth[depth]));
  }
  return out;
}

// Accepted drafts of all that were verified.
std::string acceptance_text(const SpeculationStats& stats) {
  if (stats.verify_steps == 0) return "-";
  return percent(static_cast<double>(stats.emitted_tokens - stats.verify_steps),
                 static_cast<double>(stats.drafted_nodes));
}

}  // namespace

std::string summary_text(const EngineInfo& info, const EngineStats& stats) {
  const double seconds = total_seconds(stats);
  std::string out = info.architecture + " (" + std::string(dtype_name(info.dtype)) + ") on " + info.backend + "\n";
  out += "prompt     " + std::to_string(stats.prompt_tokens) + " tokens computed, " +
         std::to_string(stats.prefix_hit_tokens) + " found in the cache";
  if (stats.prefill_seconds > 0.0) {
    out += ", " + short_number(rate(static_cast<double>(stats.prefill_tokens), stats.prefill_seconds)) + " tokens/s";
  }
  out += "\ngenerated  " + std::to_string(stats.generated_tokens) + " tokens in " + fixed(seconds, 2) + " s, " +
         short_number(rate(static_cast<double>(stats.generated_tokens), seconds)) + " tokens/s, " +
         fixed(tokens_a_step(stats), 2) + " a step\n";
  out += "attention  " + percent(stats.attention_seconds, seconds) + " of the time\n";
  out += "cache      " + bytes_text(stats.cache_bytes) + ", at most " +
         percent(static_cast<double>(stats.peak_blocks), static_cast<double>(stats.num_blocks)) + " used, " +
         std::to_string(stats.preemptions) + " preemptions\n";
  const SpeculationStats& drafts = stats.speculation;
  if (drafts.verify_steps > 0) {
    out += "drafts     " +
           fixed(rate(static_cast<double>(drafts.emitted_tokens), static_cast<double>(drafts.verify_steps)), 2) +
           " tokens a verified tree of " +
           fixed(rate(static_cast<double>(drafts.drafted_nodes), static_cast<double>(drafts.verify_steps)), 1) +
           " drafts; went on from depth 0, 1, ...: " + depths_text(drafts) + "; drafting took " +
           percent(drafts.draft_seconds, seconds) + " of the time\n";
  }
  return out;
}

Table summary_table(const SummaryLabels& labels, const EngineInfo& info, const EngineStats& stats) {
  Table out;
  out.header = {"run", "backend", "cache dtype", "tokens", "tokens/s", "tokens a step", "acceptance", "cache bytes"};
  out.rows.push_back({labels.name, info.backend, labels.kv_cache_dtype, std::to_string(stats.generated_tokens),
                      short_number(rate(static_cast<double>(stats.generated_tokens), total_seconds(stats))),
                      fixed(tokens_a_step(stats), 2), acceptance_text(stats.speculation),
                      std::to_string(stats.cache_bytes)});
  return out;
}

}  // namespace quire::cli
