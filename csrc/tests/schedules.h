// How tests run kernels: under every instruction set that runs here, and tasks in orders of their own.
#pragma once

#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

// f(name) while each of them is the current one.
template <class F>
void for_each_instruction_set(F f) {
  const std::string before = clebsch::instruction_set();
  for (const std::string& name : clebsch::usable_instruction_sets()) {
    clebsch::select_instruction_set(name);
    CHECK(clebsch::instruction_set() == name);
    f(name);
  }
  clebsch::select_instruction_set(before);
}

// Tasks one at a time, the last one first.
inline void run_backwards(std::int64_t tasks, clebsch::Body body, void* context) {
  for (std::int64_t i = tasks; i-- > 0;) body(context, i, i + 1);
}

inline void run_in_threads(std::int64_t tasks, clebsch::Body body, void* context) {
  std::vector<std::thread> threads;
  for (std::int64_t t = 0; t < 3; ++t)
    threads.emplace_back([=] { body(context, tasks * t / 3, tasks * (t + 1) / 3); });
  for (std::thread& thread : threads) thread.join();
}
