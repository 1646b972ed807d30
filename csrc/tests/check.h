// The smallest test framework that does: tests register themselves, a failed check says where and is counted.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};
std::vector<Test>& tests();
void fail(const char* file, int line, const std::string& what);

struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

// The message of the std::invalid_argument or std::out_of_range that f throws; "" if it throws nothing.
template <class F>
std::string refusal(F f) {
  try {
    f();
  } catch (const std::logic_error& error) {
    return error.what();
  }
  return "";
}

}  // namespace check

#define TEST(name)                                            \
  static void name();                                         \
  static const check::Register register_##name(#name, &name); \
  static void name()

// CHECK(condition, what, ...): the rest is printed where it does not hold.
#define CHECK(condition, ...)                                                                  \
  do {                                                                                         \
    if (!(condition)) check::fail(__FILE__, __LINE__, check_words(#condition, ##__VA_ARGS__)); \
  } while (false)

template <class... Words>
std::string check_words(const Words&... words) {
  std::ostringstream text;
  ((text << words << ' '), ...);
  return text.str();
}
