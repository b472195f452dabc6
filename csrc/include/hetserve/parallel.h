// Threads, borrowed from torch: its OpenMP runtime is found at run time and its pool is used, so a process never has two spinning pools.
// Nothing here links OpenMP. Without torch in the process everything runs on the calling thread.
#pragma once

namespace hetserve {

// What torch.get_num_threads() says for the calling thread; 1 inside a parallel region or without torch.
int max_threads();

// The same setting as torch.set_num_threads(n); false when torch is not loaded.
bool set_max_threads(int n);

// Runs body(context, thread) on at most `threads` threads at once, thread in [0, threads). There may be fewer: bodies take work from a shared counter.
void parallel(int threads, void (*body)(void* context, int thread), void* context);

template <class F>
void parallel(int threads, F f) {
  if (threads <= 1) {
    f(0);
    return;
  }
  parallel(threads, [](void* context, int thread) { (*static_cast<F*>(context))(thread); }, &f);
}

}  // namespace hetserve
