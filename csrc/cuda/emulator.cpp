#include "cuda/emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <set>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(CLEBSCH_RACES)
#include <sanitizer/tsan_interface.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace clebsch::cuda::emulator {
namespace {

constexpr std::size_t kStack = 256 << 10;  // of a thread; untouched pages take no memory
constexpr unsigned kLanes = 32;

struct Setting {
  Order order = Order::forward;
  unsigned seed = 1;
};
Setting parse_order(const std::string& words) {
  const std::string name = words.substr(0, words.find(':'));
  Setting setting;
  if (name == "reverse") {
    setting.order = Order::reverse;
  } else if (name == "random") {
    setting.order = Order::random;
    if (words.size() > name.size())
      setting.seed = static_cast<unsigned>(std::strtoul(words.c_str() + name.size() + 1, nullptr, 10));
  } else if (name != "forward") {
    throw std::invalid_argument("CLEBSCH_THREAD_ORDER must be forward, reverse or random[:seed], got '" +
                                words + "'");
  }
  return setting;
}
std::mutex setting_mutex, launched_mutex;
std::set<const void*> launched;
std::atomic<std::int64_t> most_blocks_of_tests{0}, shared_limit_of_tests{0}, most_shared{0};
Setting& setting() {
  static Setting one = [] {
    const char* words = std::getenv("CLEBSCH_THREAD_ORDER");
    return parse_order(words ? words : "forward");
  }();
  return one;
}

// Switching from one stack to another: what a function call keeps, and nothing else.
#if defined(__x86_64__)
struct Context {
  void* stack_pointer = nullptr;
};
extern "C" void clebsch_switch_stack(void** save, void* to);
__asm__(R"(
.pushsection .text
.type clebsch_switch_stack,@function
clebsch_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.popsection
)");
void prepare(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStack) - 1;
  *top = nullptr;  // aligns the stack at entry as a call would
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}
void switch_context(Context& from, Context& to) {
  clebsch_switch_stack(&from.stack_pointer, to.stack_pointer);
}
#else
struct Context {
  ucontext_t context;
};
void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = kStack;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}
void switch_context(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
#endif

enum class State : unsigned char { ready, at_block_barrier, at_warp_barrier, done };

struct Thread {
  Context context;
  dim3 index;
  unsigned number = 0;
  State state = State::ready;
  bool started = false;
  const char* file = nullptr;  // where it waits
  int line = 0;
  void* fake_stack = nullptr;
  char* stack = nullptr;
  void* fiber = nullptr;  // what ThreadSanitizer calls it
};

// Stacks of the threads of a block, kept by the thread that runs it: fresh pages cost more than small
// kernels.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks() { release(); }
  char* reserve(unsigned count) {
    if (count > count_) {
      release();
      void* memory = mmap(nullptr, count * kStack, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      memory_ = static_cast<char*>(memory);
      count_ = count;
    }
    return memory_;
  }

 private:
  void release() {
    if (!memory_) return;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(memory_, count_ * kStack);
#endif
    munmap(memory_, count_ * kStack);
    memory_ = nullptr;
    count_ = 0;
  }
  char* memory_ = nullptr;
  unsigned count_ = 0;
};

// Whoever meets at a barrier, twice: two of everything, since the fastest may be at the next one already.
struct Meeting {
  int round = 0;
  char tag[2];  // for ThreadSanitizer
};

struct Warp : Meeting {
  unsigned lanes = 0, arrived = 0;
  const char* file = nullptr;
  int line = 0;
  int offset = 0;
  alignas(16) unsigned char slots[2][kLanes][16];
};

class Block {
 public:
  Block(dim3 grid, dim3 block, std::size_t shared, void (*body)(void*), void* context)
      : body_(body), context_(context), count_(block.x * block.y * block.z), shared_bytes_(shared) {
    place_.threads = block;
    place_.blocks = grid;
    if (count_ == 0 || count_ > 1024 || shared > (227u << 10) || grid.y > 65535 || grid.z > 65535)
      throw Violation("invalid launch configuration");
    threads_.resize(count_);
    warps_.resize((count_ + kLanes - 1) / kLanes);
    order_.resize(count_);
    // Of exactly this size, so that AddressSanitizer sees what lies beyond.
    shared_ = static_cast<unsigned char*>(::operator new(shared, std::align_val_t(16)));
    static thread_local Stacks stacks;
    stacks_ = stacks.reserve(count_);
    {
      const std::lock_guard lock(setting_mutex);
      setting_ = setting();
    }
    random_.seed(setting_.seed);
    for (unsigned i = 0; i < count_; ++i) order_[i] = setting_.order == Order::reverse ? count_ - 1 - i : i;
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { ::operator delete(shared_, std::align_val_t(16)); }

  void run_grid();
  [[noreturn]] void enter();
  void wait(State state, const char* file, int line);
  void block_barrier(const char* file, int line);
  void warp_barrier(const char* file, int line);
  void warp_meeting(const char* file, int line);
  const void* exchange(const void* value, std::size_t bytes, unsigned mask, int offset, const char* file,
                       int line);
  [[noreturn]] void violate(const std::string& what) const {
    const auto triple = [](const dim3& d) {
      return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
    };
    throw Violation(what + " [block " + triple(place_.block) + ", thread " + triple(current_->index) + "]");
  }

  Place place_;
  unsigned char* shared_ = nullptr;

 private:
  void run_block();
  bool run_mixed();
  bool run_warp_by_warp();
  void resume(Thread& thread);
  void leave(bool last);
  static void order_before(Meeting& meeting);
  static void order_after(Meeting& meeting, int round);

  void (*body_)(void*);
  void* context_;
  unsigned count_, alive_ = 0, waiting_ = 0;
  std::size_t shared_bytes_;
  Setting setting_;
  std::mt19937 random_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<unsigned> order_;
  char* stacks_ = nullptr;
  Context scheduler_;
  Thread* current_ = nullptr;
  std::exception_ptr failure_;
  const char* barrier_file_ = nullptr;
  int barrier_line_ = 0;
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_stack_size_ = 0;
  void* scheduler_fiber_ = nullptr;
  Meeting meeting_;
};

thread_local Block* running = nullptr;

void entry() { running->enter(); }

bool same_place(const char* a, int line_a, const char* b, int line_b) {
  return line_a == line_b && std::strcmp(a, b) == 0;
}

// AddressSanitizer has to be told of every change of stacks. ThreadSanitizer too, and that it says nothing of
// the order of what threads do: barriers alone order it (order_before, order_after), and the end of a block.
void Block::leave([[maybe_unused]] bool last) {
  Thread& self = *current_;
#if defined(CLEBSCH_RACES)
  __tsan_switch_to_fiber(scheduler_fiber_, last ? 0 : __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &self.fake_stack, scheduler_stack_, scheduler_stack_size_);
#endif
  switch_context(self.context, scheduler_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self.fake_stack, &scheduler_stack_, &scheduler_stack_size_);
#endif
}

#if defined(CLEBSCH_RACES)
// ThreadSanitizer's view of a thread of a block, kept for the next block and launch.
void* fiber(unsigned number) {
  static thread_local std::vector<void*> fibers;
  while (fibers.size() <= number) fibers.push_back(__tsan_create_fiber(0));
  return fibers[number];
}
#endif

void Block::resume(Thread& thread) {
#if defined(CLEBSCH_RACES)
  unsigned tell = __tsan_switch_to_fiber_no_sync;
#endif
  current_ = &thread;
  place_.thread = thread.index;
  if (!thread.started) {
    thread.started = true;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(thread.stack, kStack);
#endif
    prepare(thread.context, thread.stack, &entry);
#if defined(CLEBSCH_RACES)
    thread.fiber = fiber(thread.number);
    tell = 0;  // what was before the block is before all that its threads do
#endif
  }
#if defined(CLEBSCH_RACES)
  __tsan_switch_to_fiber(thread.fiber, tell);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack_, thread.stack, kStack);
#endif
  switch_context(scheduler_, thread.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
  if (failure_) std::rethrow_exception(failure_);
}

// What a thread did before a barrier is done for all that leave the same one: the next has another tag, since
// the fastest may be there before the slowest has left.
void Block::order_before([[maybe_unused]] Meeting& meeting) {
#if defined(CLEBSCH_RACES)
  __tsan_release(&meeting.tag[meeting.round]);
#endif
}
void Block::order_after([[maybe_unused]] Meeting& meeting, [[maybe_unused]] int round) {
#if defined(CLEBSCH_RACES)
  __tsan_acquire(&meeting.tag[round]);
#endif
}

void Block::enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack_, &scheduler_stack_size_);
#endif
  try {
    body_(context_);
  } catch (...) {
    if (!failure_) failure_ = std::current_exception();
  }
  current_->state = State::done;
  --alive_;
  leave(true);
  std::abort();  // nobody resumes a thread that is done
}

void Block::wait(State state, const char* file, int line) {
  Thread& self = *current_;
  self.state = state;
  self.file = file;
  self.line = line;
  leave(false);
}

void Block::block_barrier(const char* file, int line) {
  if (waiting_ == 0) {
    barrier_file_ = file;
    barrier_line_ = line;
  } else if (!same_place(file, line, barrier_file_, barrier_line_)) {
    violate("threads of a block wait at different barriers, lines " + std::to_string(barrier_line_) +
            " and " + std::to_string(line));
  }
  if (alive_ != count_)
    violate("a barrier, line " + std::to_string(line) + ", after threads of the block have returned");
  ++waiting_;
  const int round = meeting_.round;
  order_before(meeting_);
  wait(State::at_block_barrier, file, line);
  order_after(meeting_, round);
}

void Block::warp_barrier(const char* file, int line) {
  Warp& warp = warps_[current_->number / kLanes];
  const int round = warp.round;
  order_before(warp);
  warp_meeting(file, line);
  order_after(warp, round);
}

// The last lane wakes the others and goes on.
void Block::warp_meeting(const char* file, int line) {
  const unsigned number = current_->number / kLanes, lane = current_->number % kLanes;
  Warp& warp = warps_[number];
  if (warp.arrived == 0) {
    warp.file = file;
    warp.line = line;
  } else if (!same_place(file, line, warp.file, warp.line)) {
    violate("lanes of a warp meet in different lines, " + std::to_string(warp.line) + " and " +
            std::to_string(line));
  }
  warp.arrived |= 1u << lane;
  if (warp.arrived == warp.lanes) {
    warp.arrived = 0;
    warp.round ^= 1;
    for (unsigned i = 0; i < kLanes && number * kLanes + i < count_; ++i) {
      Thread& other = threads_[number * kLanes + i];
      if (other.state == State::at_warp_barrier) other.state = State::ready;
    }
  } else {
    wait(State::at_warp_barrier, file, line);
  }
}

const void* Block::exchange(const void* value, std::size_t bytes, unsigned mask, int offset, const char* file,
                            int line) {
  const unsigned lane = current_->number % kLanes;
  Warp& warp = warps_[current_->number / kLanes];
  if (mask != ~0u || warp.lanes != ~0u)
    violate("a shuffle, line " + std::to_string(line) + ", needs 32 lanes");
  if (warp.arrived == 0) warp.offset = offset;
  if (warp.offset != offset || offset < 0 || offset >= static_cast<int>(kLanes))
    violate("lanes of a warp shuffle by different offsets, line " + std::to_string(line));
  const int round = warp.round;
  // Not memcpy, which ThreadSanitizer watches wherever it is called.
  for (std::size_t i = 0; i < bytes; ++i)
    static_cast<volatile unsigned char*>(warp.slots[round][lane])[i] =
        static_cast<const unsigned char*>(value)[i];
  warp_meeting(file, line);
  return warp.slots[round][lane ^ static_cast<unsigned>(offset)];
}

// Every thread that is ready goes on once, in random order.
bool Block::run_mixed() {
  std::shuffle(order_.begin(), order_.end(), random_);
  bool any = false;
  for (const unsigned i : order_) {
    if (threads_[i].state != State::ready) continue;
    any = true;
    resume(threads_[i]);
  }
  return any;
}

// Each warp goes as far as it can before the next one moves: nothing but a barrier keeps them together.
bool Block::run_warp_by_warp() {
  bool any = false;
  for (unsigned first = 0; first < count_; first += kLanes) {
    for (bool more = true; more;) {
      more = false;
      for (unsigned at = first; at < std::min(first + kLanes, count_); ++at) {
        Thread& thread = threads_[order_[at]];
        if (thread.state != State::ready) continue;
        any = more = true;
        resume(thread);
      }
    }
  }
  return any;
}

void Block::run_block() {
  const dim3& size = place_.threads;
  for (unsigned i = 0; i < count_; ++i) {
    Thread& thread = threads_[i];
    thread = Thread{};
    thread.number = i;
    thread.index = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
    thread.stack = stacks_ + i * kStack;
  }
  for (unsigned w = 0; w < warps_.size(); ++w) {
    const unsigned lanes = std::min(count_ - w * kLanes, kLanes);
    warps_[w].lanes = lanes == kLanes ? ~0u : (1u << lanes) - 1;
    warps_[w].arrived = 0;
  }
  alive_ = count_;
  waiting_ = 0;
  if (shared_bytes_) std::memset(shared_, 0xff, shared_bytes_);
  while (alive_) {
    const bool any = setting_.order == Order::random ? run_mixed() : run_warp_by_warp();
    if (waiting_ && waiting_ == count_) {
      waiting_ = 0;
      meeting_.round ^= 1;
      for (Thread& thread : threads_) thread.state = State::ready;
    } else if (!any) {
      std::string where;
      for (const Thread& thread : threads_) {
        if (thread.state == State::done || where.size() > 100) continue;
        where += " thread " + std::to_string(thread.number) + " in line " + std::to_string(thread.line);
      }
      throw Violation("threads wait for each other:" + where);
    }
  }
}

void Block::run_grid() {
#if defined(CLEBSCH_RACES)
  scheduler_fiber_ = __tsan_get_current_fiber();
#endif
  const dim3& size = place_.blocks;
  const std::uint64_t count = std::uint64_t{size.x} * size.y * size.z;
  std::vector<std::uint64_t> blocks(count);
  for (std::uint64_t i = 0; i < count; ++i) blocks[i] = setting_.order == Order::reverse ? count - 1 - i : i;
  if (setting_.order == Order::random) std::shuffle(blocks.begin(), blocks.end(), random_);
  for (const std::uint64_t i : blocks) {
    place_.block = dim3(static_cast<unsigned>(i % size.x), static_cast<unsigned>(i / size.x % size.y),
                        static_cast<unsigned>(i / (std::uint64_t{size.x} * size.y)));
    run_block();
  }
}

}  // namespace

void set_order(Order order, unsigned seed) {
  const std::lock_guard lock(setting_mutex);
  setting() = {order, seed};
}
void set_order(const std::string& words) {
  const Setting parsed = parse_order(words);
  set_order(parsed.order, parsed.seed);
}

void set_most_blocks(std::int64_t count) { most_blocks_of_tests = count; }
std::int64_t most_blocks(std::int64_t of_a_device) {
  const std::int64_t set = most_blocks_of_tests;
  return set ? set : of_a_device;
}

void set_shared_limit(std::int64_t bytes) { shared_limit_of_tests = bytes; }
std::int64_t shared_limit(std::int64_t of_a_device) {
  const std::int64_t set = shared_limit_of_tests;
  return set ? set : of_a_device;
}

std::int64_t shared_bytes_since() { return most_shared.exchange(0); }

void note_launch(const void* kernel) {
  const std::lock_guard lock(launched_mutex);
  launched.insert(kernel);
}
const void* take_launch() {
  const std::lock_guard lock(launched_mutex);
  return launched.empty() ? nullptr : launched.extract(launched.begin()).value();
}

const Place& here() { return running->place_; }
void* shared_memory() { return running->shared_; }
void block_barrier(const char* file, int line) { running->block_barrier(file, line); }
void warp_barrier(const char* file, int line) { running->warp_barrier(file, line); }
const void* exchange(const void* value, std::size_t bytes, unsigned mask, int offset, const char* file,
                     int line) {
  return running->exchange(value, bytes, mask, offset, file, line);
}

void run_threads(dim3 grid, dim3 block, std::size_t shared, void (*body)(void*), void* context) {
  most_shared = std::max(most_shared.load(), static_cast<std::int64_t>(shared));
  Block state(grid, block, shared, body, context);
  Block* const before = running;
  running = &state;
  try {
    state.run_grid();
  } catch (...) {
    running = before;
    throw;
  }
  running = before;
}

}  // namespace clebsch::cuda::emulator
