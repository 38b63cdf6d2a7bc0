// The table of subcommands, and how one declares its options. Only command.cc knows the library that parses them: its
// header costs twenty seconds a file.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <variant>
#include <vector>

namespace quire::cli {

// Exit statuses: all well, something failed or was out of tolerance, the command line was wrong.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;

// One option: "--name" or, for arguments without a dash, "name". A bool is a flag; the others take values, and what
// their target holds is the default that --help shows.
struct Option {
  using Target = std::variant<std::string*, std::int32_t*, std::uint64_t*, double*, bool*, std::vector<std::string>*>;
  enum class Presence : std::uint8_t { kOptional, kRequired };

  std::string name;
  Target target;
  std::string help;
  Presence presence = Presence::kOptional;
};

// What a subcommand takes; targets must live until it has run.
struct Usage {
  std::vector<Option> options;
  std::string footer;
};

// Fills in the subcommand's options and returns what runs once they are parsed.
using Attach = std::function<int()> (*)(Usage& usage);

std::function<int()> attach_backends(Usage& usage);
std::function<int()> attach_explain(Usage& usage);
std::function<int()> attach_kernels(Usage& usage);
std::function<int()> attach_replay(Usage& usage);
std::function<int()> attach_bench(Usage& usage);
std::function<int()> attach_embed(Usage& usage);     // only where the engine is built
std::function<int()> attach_generate(Usage& usage);  // the same
std::function<int()> attach_collect_env(Usage& usage);

// Parses the command line, runs the subcommand and returns the exit status.
int run_command_line(int argc, const char* const* argv);

}  // namespace quire::cli
