// The quire command line: the list of subcommands and the parsing of their options.
#include "cli/command.h"

#include <CLI/CLI.hpp>
#include <exception>
#include <iostream>
#include <type_traits>

#include "quire/version.h"

namespace quire::cli {
namespace {

struct Command {
  const char* name;
  const char* summary;
  Attach attach;
};

constexpr Command kCommands[] = {
    {"backends", "Show what each attention backend supports", attach_backends},
    {"explain", "Say for one configuration which backends can run it, and every reason why others cannot",
     attach_explain},
    {"kernels", "List the compiled kernels and the instruction sets that can run here", attach_kernels},
    {"replay", "Run attention case files and compare with their answers", attach_replay},
    {"bench", "Measure attention on batches, beside what this machine could do at best", attach_bench},
#ifdef QUIRE_HAS_ENGINE
    {"generate", "Continue texts with a checkpoint, with drafts if wanted", attach_generate},
    {"embed", "Turn texts into vectors with a sentence encoder", attach_embed},
#endif
    {"collect-env", "Print versions, processor, instruction sets and memory for a bug report", attach_collect_env},
};

void add_option(CLI::App& app, const Option& option) {
  std::visit(
      [&](auto* target) {
        using T = std::remove_pointer_t<decltype(target)>;
        if constexpr (std::is_same_v<T, bool>) {
          app.add_flag(option.name, *target, option.help);
        } else {
          auto* added = app.add_option(option.name, *target, option.help);
          added->required(option.presence == Option::Presence::kRequired);
          if constexpr (std::is_arithmetic_v<T>) added->capture_default_str();
          if constexpr (std::is_same_v<T, std::string>) {
            if (!target->empty()) added->capture_default_str();
          }
        }
      },
      option.target);
}

int parse_and_run(CLI::App& app, int argc, const char* const* argv) {
  std::function<int()> chosen;
  for (const Command& command : kCommands) {
    CLI::App* sub = app.add_subcommand(command.name, command.summary);
    Usage usage;
    std::function<int()> run = command.attach(usage);
    for (const Option& option : usage.options) add_option(*sub, option);
    if (!usage.footer.empty()) sub->footer(usage.footer);
    sub->callback([&chosen, run = std::move(run)] { chosen = run; });
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int status = app.exit(error, std::cout, std::cerr);
    return status == 0 ? kExitOk : kExitUsage;
  }
  return chosen();
}

}  // namespace

int run_command_line(int argc, const char* const* argv) {
  CLI::App app{"Paged attention for language model inference"};
  app.name("quire");
  app.set_version_flag("--version", std::string("quire ") + version());
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  try {
    return parse_and_run(app, argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "quire: " << error.what() << '\n';
    return kExitFailure;
  }
}

}  // namespace quire::cli
