// clebsch_tests [NAME...]: runs all tests, or those whose names contain one of the words.
#include <chrono>
#include <cstring>

#include "check.h"

namespace check {

namespace {
int failures = 0;
}

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

void fail(const char* file, int line, const std::string& what) {
  if (++failures <= 20) std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

}  // namespace check

int main(int count, char** words) {
  int run = 0, failed = 0;
  for (const check::Test& test : check::tests()) {
    bool wanted = count == 1;
    for (int i = 1; i < count; ++i) wanted |= std::strstr(test.name, words[i]) != nullptr;
    if (!wanted) continue;
    const int before = check::failures;
    const auto start = std::chrono::steady_clock::now();
    test.run();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const bool ok = check::failures == before;
    std::printf("%-40s %s %6.2f s\n", test.name, ok ? "ok    " : "FAILED", seconds.count());
    ++run;
    failed += !ok;
  }
  std::printf("%d tests, %d failed, %d checks failed\n", run, failed, check::failures);
  return run == 0 || failed ? 1 : 0;
}
