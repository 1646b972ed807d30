// ThreadSanitizer on the emulator (clebsch_races): barriers order what threads do, nothing else. Races that
// no order of whole threads shows, each beside the same kernel without it.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/device.h"

// Which is how a process that raced is told from others.
extern "C" const char* __tsan_default_options() { return "halt_on_error=1 exitcode=66 atexit_sleep_ms=0"; }

namespace {

namespace cuda = clebsch::cuda;

enum class Race { none, same_value, write_after_read, shuffle_is_no_barrier, global, next_barrier };

struct Args {
  const double* in;
  double* out;
};

template <Race R>
__global__ void race(Args args) {
  double* tile = cuda::dynamic_shared<double>();
  const int t = threadIdx.x;
  // All write the same.
  if (R == Race::same_value || t == 0) tile[0] = 1;
  __syncthreads();
  // The neighbour's number is read before, in each of the orders that the emulator has, or after: both alike.
  double value = tile[0];
  if constexpr (R != Race::write_after_read) __syncthreads();
  if (t == 40) tile[0] = 1;
  __syncthreads();
  tile[t] = args.in[t];
  if constexpr (R == Race::shuffle_is_no_barrier) {
    value += __shfl_xor_sync(cuda::kAllLanes, value, 1);
  } else {
    __syncwarp();
  }
  value += tile[t ^ 1];
  if constexpr (R == Race::global) {
    if (t >= 32) args.out[64] = value * 0;
  }
  if constexpr (R == Race::next_barrier) {
    // What is written after a barrier is not ordered by it, though others have not left it yet.
    __syncthreads();
    if (t == 0) tile[63] = value;
    if (t == 63) value += tile[63];
    __syncthreads();
  }
  args.out[t] = value;
}

// The exit status of a process of its own that runs the kernel in an order.
template <Race R>
int status(const std::string& order) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    if (!std::freopen("/dev/null", "w", stderr)) _exit(1);
    cuda::emulator::set_order(order);
    const std::vector<double> in(64, 1);
    std::vector<double> out(65);
    for (int i = 0; i < 2; ++i)
      cuda::launch(&race<R>, dim3(3), dim3(64), 64 * sizeof(double), nullptr, Args{in.data(), out.data()});
    _exit(0);
  }
  int code = 0;
  waitpid(child, &code, 0);
  return WIFEXITED(code) ? WEXITSTATUS(code) : -1;
}

template <Race R>
void check_status(int expected) {
  for (const char* order : {"forward", "reverse", "random:1"}) {
    const int found = status<R>(order);
    CHECK(found == expected, order, static_cast<int>(R), found);
  }
}

}  // namespace

TEST(races_are_found) {
  check_status<Race::same_value>(66);
  check_status<Race::write_after_read>(66);
  check_status<Race::shuffle_is_no_barrier>(66);
  check_status<Race::global>(66);
  check_status<Race::next_barrier>(66);
}

TEST(races_are_not_seen_where_there_are_none) { check_status<Race::none>(0); }
