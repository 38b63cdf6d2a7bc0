// The quire command.
#include "cli/command.h"

int main(int argc, char** argv) { return quire::cli::run_command_line(argc, argv); }
