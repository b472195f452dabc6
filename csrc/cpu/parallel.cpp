// Finds the OpenMP runtime that libtorch_cpu uses and calls it through the entry points compilers call.
// torch's wheels bundle a libgomp of their own, in some versions under a name of its own: linking -lgomp could load a second one.
#include "hetserve/parallel.h"

#include <dlfcn.h>

namespace hetserve {
namespace {

struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread_num)() = nullptr;
  int (*max_threads)() = nullptr;
  int (*in_parallel)() = nullptr;
  void (*set_num_threads)(int) = nullptr;
  bool found = false;
};

template <class F>
bool find(void* library, const char* name, F* f) {
  *f = reinterpret_cast<F>(dlsym(library, name));
  return *f != nullptr;
}

// dlsym on libtorch_cpu searches its dependencies too: this is the runtime torch itself calls, whatever its file is named.
OpenMp look_for_torch() {
  OpenMp omp;
  void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (torch == nullptr) return omp;
  omp.found = find(torch, "GOMP_parallel", &omp.parallel) && find(torch, "omp_get_thread_num", &omp.thread_num) &&
              find(torch, "omp_get_max_threads", &omp.max_threads) && find(torch, "omp_in_parallel", &omp.in_parallel) &&
              find(torch, "omp_set_num_threads", &omp.set_num_threads);
  return omp;
}

// Remembered once found: torch may be imported after this library, but is never unloaded. Callers hold no lock, so the search may run twice.
const OpenMp& runtime() {
  static const OpenMp none;
  static thread_local bool found = false;
  static thread_local OpenMp omp;
  if (!found) {
    omp = look_for_torch();
    found = omp.found;
  }
  return found ? omp : none;
}

struct Call {
  void (*body)(void*, int);
  void* context;
  int (*thread_num)();
};

void enter(void* data) {
  const Call& call = *static_cast<Call*>(data);
  call.body(call.context, call.thread_num());
}

}  // namespace

int max_threads() {
  const OpenMp& omp = runtime();
  return omp.found && !omp.in_parallel() ? omp.max_threads() : 1;
}

bool set_max_threads(int n) {
  const OpenMp& omp = runtime();
  if (omp.found) omp.set_num_threads(n);
  return omp.found;
}

void parallel(int threads, void (*body)(void* context, int thread), void* context) {
  const OpenMp& omp = runtime();
  if (threads <= 1 || !omp.found || omp.in_parallel()) {
    body(context, 0);
    return;
  }
  Call call{body, context, omp.thread_num};
  omp.parallel(enter, &call, static_cast<unsigned>(threads), 0);
}

}  // namespace hetserve
