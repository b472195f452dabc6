// Threads of a block as fibers on the calling thread. Made by makecontext, once for all blocks, and switched by _setjmp and _longjmp: swapcontext would ask
// the kernel for the signal mask every time, as makecontext's own start does.
#undef _FORTIFY_SOURCE  // its longjmp takes a jump to another stack for a mistake
#include <setjmp.h>
#include <ucontext.h>

#include <deque>
#include <memory>
#include <stdexcept>
#include <vector>

#define cuda cuda_emulated
#include "cuda/ops.h"
#include "device.cuh"

namespace hetserve::cuda {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Fiber {
  ucontext_t context{};  // where it starts
  jmp_buf place{};       // where it goes on
  bool started = false;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  std::deque<std::vector<Copy>> groups;  // committed; the last one is being filled
  bool done = false;
};

struct Meeting {  // of a warp or a block
  int arrived = 0;
  uint64_t held = 0;
  void* operands[kWarp] = {};
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept from block to block
  std::vector<Meeting> warps;
  Meeting all;
  std::vector<uint4> shared;
  const std::function<void()>* body = nullptr;
  jmp_buf scheduler{};
  int threads = 0, current = 0;
  uint64_t events = 0;  // meetings held and fibers ended: a round of the scheduler without one is a deadlock
};

thread_local Block block;

void yield() {
  if (_setjmp(block.fibers[block.current]->place) == 0) _longjmp(block.scheduler, 1);
}

void go_on(Fiber& fiber) {
  if (_setjmp(block.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

// Returns true to the last who arrives, who must call hold(); the others return once it has.
bool meet(Meeting& meeting, int expected) {
  if (++meeting.arrived == expected) return true;
  const uint64_t before = meeting.held;
  while (meeting.held == before) yield();
  return false;
}

void hold(Meeting& meeting) {
  meeting.arrived = 0;
  ++meeting.held;
  ++block.events;
}

// A fiber's life: the same thread of block after block.
void live() {
  for (;;) {
    (*block.body)();
    block.fibers[block.current]->done = true;
    ++block.events;
    yield();
  }
}

void start_fibers(int threads) {
  while (static_cast<int>(block.fibers.size()) < threads) {
    block.fibers.push_back(std::make_unique<Fiber>());
    Fiber& fiber = *block.fibers.back();
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, kStackBytes};
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, live, 0);
  }
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = *block.fibers[i];
    fiber.done = false;
    fiber.groups.resize(1);
    fiber.groups.front().clear();
  }
}

void run_block() {
  start_fibers(block.threads);
  block.warps.assign((block.threads + kWarp - 1) / kWarp, {});
  block.all = {};
  std::memset(static_cast<void*>(block.shared.data()), 0xff, block.shared.size() * sizeof(uint4));
  bool up = true;
  for (int left = block.threads; left > 0; up = !up) {  // now from the first thread on, now from the last: neither may write too late for the other
    const uint64_t before = block.events;
    for (int i = 0; i < block.threads; ++i) {
      block.current = up ? i : block.threads - 1 - i;
      Fiber& fiber = *block.fibers[block.current];
      if (fiber.done) continue;
      threadIdx = dim3(block.current, 0, 0);
      go_on(fiber);
      left -= fiber.done;
    }
    if (block.events == before) {
      block.fibers.clear();  // they are in the middle of it
      throw std::logic_error("the threads of a block wait for each other");
    }
  }
}

}  // namespace

void run_grid(dim3 grid, int threads, size_t shared_bytes, const std::function<void()>& body) {
  if (threads % kWarp != 0) throw std::logic_error("a block is not whole warps");
  block.threads = threads;
  block.body = &body;
  block.shared.resize((shared_bytes + sizeof(uint4) - 1) / sizeof(uint4));
  gridDim = grid;
  blockDim = dim3(threads);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        run_block();
      }
    }
  }
}

void together(void* operand, void (*f)(void* const* lanes)) {
  Meeting& warp = block.warps[threadIdx.x / kWarp];
  warp.operands[threadIdx.x % kWarp] = operand;
  if (meet(warp, kWarp)) {
    f(warp.operands);
    hold(warp);
  }
}

void sync_block() {
  if (meet(block.all, block.threads)) hold(block.all);
}

void copy(void* to, const void* from, int64_t bytes, Stream) { std::memcpy(to, from, static_cast<size_t>(bytes)); }

unsigned char* shared_memory() { return reinterpret_cast<unsigned char*>(block.shared.data()); }

void copy_async(void* shared, const void* global, bool valid) { block.fibers[block.current]->groups.back().push_back({shared, global, valid}); }

void commit_copies() { block.fibers[block.current]->groups.emplace_back(); }

void wait_copies_but(int left) {
  auto& groups = block.fibers[block.current]->groups;
  while (static_cast<int>(groups.size()) - 1 > left) {
    for (const Copy& copy : groups.front()) {
      if (copy.valid) {
        std::memcpy(copy.to, copy.from, 16);
      } else {
        std::memset(copy.to, 0, 16);
      }
    }
    groups.pop_front();
  }
}

}  // namespace hetserve::cuda
