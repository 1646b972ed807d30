// The emulator catches what it is there for: each mistake is planted in a kernel, beside the same kernel
// without it.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "cuda/device.h"

namespace {

namespace cuda = clebsch::cuda;
using cuda::emulator::Violation;

const char* const kOrders[] = {"forward", "reverse", "random:1", "random:2"};

template <class F>
void under_each_order(F f) {
  for (const char* order : kOrders) {
    cuda::emulator::set_order(order);
    f(std::string(order));
  }
  cuda::emulator::set_order("forward");
}

// The words of what a kernel violates; "" if nothing.
template <class F>
std::string violation(F f) {
  try {
    f();
  } catch (const Violation& found) {
    return found.what();
  }
  return "";
}

// Whether a process of its own that runs f comes to an end by a signal or with an error.
template <class F>
bool crashes(F f) {
  const pid_t child = fork();
  if (child == 0) {
    if (!std::freopen("/dev/null", "w", stderr)) _exit(0);
    f();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

enum class Mistake {
  none,
  first_barrier,
  second_barrier,
  warp_barrier,
  wrong_sum,
  read_beyond,
  shared_beyond,
  other_barrier,
  return_early,
  absent_lanes,
  unwritten
};

struct Args {
  const double* in;
  double* out;
  int count;
};

// Every block sums its numbers: a tile in shared memory, turned around in place, then warps, then the first.
template <Mistake M>
__global__ void sum_tiles(Args args) {
  double* tile = cuda::dynamic_shared<double>();
  const int t = threadIdx.x, size = blockDim.x, lane = t % 32;
  const int at = blockIdx.x * size + t;
  if constexpr (M == Mistake::return_early) {
    if (at >= args.count) return;
  }
  if (M != Mistake::unwritten || t > 0)
    tile[t] = at < args.count + (M == Mistake::read_beyond) ? args.in[at] : 0;
  if constexpr (M == Mistake::other_barrier) {
    if (t < 16) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if constexpr (M != Mistake::first_barrier) {
    __syncthreads();
  }
  // Numbers of another warp, weighted so that each place counts.
  double value = tile[M == Mistake::shared_beyond ? t + 32 : size - 1 - t] * (t + 1);
  if constexpr (M == Mistake::absent_lanes) {
    if (lane < 16) value += __shfl_xor_sync(cuda::kAllLanes, value, 1);
  }
  value = cuda::sum_lanes(value);
  if constexpr (M == Mistake::wrong_sum) value += __shfl_xor_sync(cuda::kAllLanes, value, 1);
  if constexpr (M != Mistake::second_barrier) __syncthreads();
  if (lane == 0) tile[t / 32] = value;
  __syncthreads();
  if (t == 0) {
    double sum = 0;
    for (int warp = 0; warp < size / 32; ++warp) sum += tile[warp];
    args.out[blockIdx.x] = sum;
  }
}

// Lanes of a warp write for each other.
template <Mistake M>
__global__ void turn_in_warps(Args args) {
  double* tile = cuda::dynamic_shared<double>();
  const int t = threadIdx.x;
  tile[t] = args.in[t];
  if constexpr (M != Mistake::warp_barrier) __syncwarp();
  args.out[t] = tile[t ^ 1];
}

constexpr int kBlocks = 3, kThreads = 96, kCount = kBlocks * kThreads - 7;

template <Mistake M>
std::vector<double> sums() {
  Buffer<double> in(kCount, Place::page_end), out(kBlocks, Place::heap);
  for (int i = 0; i < kCount; ++i) in[i] = std::sin(i);
  out.poison();
  cuda::launch(&sum_tiles<M>, dim3(kBlocks), dim3(kThreads), kThreads * sizeof(double), nullptr,
               Args{in.data(), out.data(), kCount});
  return {out.data(), out.data() + kBlocks};
}

std::vector<double> expected_sums() {
  std::vector<double> sums(kBlocks, 0);
  for (int i = 0; i < kCount; ++i) sums[i / kThreads] += std::sin(i) * (kThreads - i % kThreads);
  return sums;
}

// Orders under which a kernel is right.
template <Mistake M>
int right_orders() {
  int right = 0;
  const std::vector<double> expected = expected_sums();
  under_each_order([&](const std::string&) {
    const std::vector<double> found = sums<M>();
    bool same = true;
    for (int b = 0; b < kBlocks; ++b) same &= std::fabs(found[b] - expected[b]) < 1e-10;
    right += same;
  });
  return right;
}

template <Mistake M>
int right_turns() {
  std::vector<double> in(64), out(64);
  for (int i = 0; i < 64; ++i) in[i] = i;
  int right = 0;
  under_each_order([&](const std::string&) {
    cuda::launch(&turn_in_warps<M>, dim3(1), dim3(64), 64 * sizeof(double), nullptr,
                 Args{in.data(), out.data(), 64});
    bool same = true;
    for (int i = 0; i < 64; ++i) same &= out[i] == (i ^ 1);
    right += same;
  });
  return right;
}

}  // namespace

TEST(emulated_kernels_are_right_in_any_order) {
  CHECK(right_orders<Mistake::none>() == 4);
  CHECK(right_turns<Mistake::none>() == 4);
}

TEST(emulator_shows_missing_barriers) {
  CHECK(right_orders<Mistake::first_barrier>() < 4);
  CHECK(right_orders<Mistake::second_barrier>() < 4);
  CHECK(right_turns<Mistake::warp_barrier>() < 4);
}

TEST(emulator_shows_a_wrong_reduction) { CHECK(right_orders<Mistake::wrong_sum>() == 0); }

TEST(emulator_shows_unwritten_shared_memory) {
  for (const double sum : sums<Mistake::unwritten>()) CHECK(std::isnan(sum));
}

TEST(emulator_shows_reads_out_of_bounds) {
  CHECK(!crashes([] { sums<Mistake::none>(); }));
  CHECK(crashes([] { sums<Mistake::read_beyond>(); }));
#if defined(__SANITIZE_ADDRESS__)
  CHECK(crashes([] { sums<Mistake::shared_beyond>(); }));
#endif
}

TEST(emulator_refuses_what_hangs_on_a_gpu) {
  using std::string;
  under_each_order([](const string&) {
    CHECK(violation([] { sums<Mistake::other_barrier>(); }).find("different barriers") != string::npos);
    CHECK(violation([] { sums<Mistake::absent_lanes>(); }) != "");
    CHECK(violation([] { sums<Mistake::return_early>(); }) != "");
  });
  const Args none{};
  CHECK(violation([&] {
          cuda::launch(&turn_in_warps<Mistake::none>, dim3(1), dim3(1025), 0, nullptr, none);
        }) == "invalid launch configuration");
  CHECK(check::refusal([] { cuda::emulator::set_order("sideways"); }) ==
        "CLEBSCH_THREAD_ORDER must be forward, reverse or random[:seed], got 'sideways'");
}

TEST(emulator_notes_which_kernels_ran) {
  while (cuda::emulator::take_launch()) {
  }
  CHECK(violation([] { sums<Mistake::return_early>(); }) != "");
  CHECK(!cuda::emulator::take_launch());
  for (int i = 0; i < 2; ++i) sums<Mistake::none>();
  CHECK(cuda::emulator::take_launch() == reinterpret_cast<const void*>(&sum_tiles<Mistake::none>));
  CHECK(!cuda::emulator::take_launch());
}
