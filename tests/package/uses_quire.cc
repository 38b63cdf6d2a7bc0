// Uses an installed quire: prints its version and fails when it is not the one given.
#include <quire/quire.h>

#include <cstdio>
#include <cstring>

int main(int argc, char** argv) {
  std::printf("quire %s\n", quire::version());
  return argc == 2 && std::strcmp(argv[1], quire::version()) == 0 ? 0 : 1;
}
