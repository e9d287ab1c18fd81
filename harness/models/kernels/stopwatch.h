// How time divides among the components of a network, for whoever asks (models/components.py).
#pragma once
#include "threads.h"
#include "vectors.h"

namespace {

enum Component { PREDICTOR, ATTENTION, CONVOLUTION, FFN, NORMS, REST, COMPONENTS };

// Of one thread. Ticks are those of the processor's clock; nobody reads it where nobody asks.
struct Stopwatch {
  int64_t ticks[COMPONENTS];
  uint64_t since;
  bool runs;

  INLINE static uint64_t now() {
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#else
    uint64_t ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#endif
  }
  INLINE void start() {
    if (runs) since = now();
  }
  // All since the last call was work of a component.
  INLINE void stop(Component component) {
    if (!runs) return;
    uint64_t then = since;
    since = now();
    ticks[component] += (int64_t)(since - then);
  }
};

// Set the stopwatches of all threads to zero; `collect` adds them up in `ticks`. They run where `ticks` is not null.
template <typename Own>
INLINE void reset(Own *own, long threads, const int64_t *ticks) {
  for (long thread = 0; thread < threads; thread++) own[thread].watch = {{}, 0, ticks != nullptr};
}
template <typename Own>
INLINE void collect(const Own *own, long threads, int64_t *ticks) {
  if (!ticks) return;
  for (long thread = 0; thread < threads; thread++)
    for (int component = 0; component < COMPONENTS; component++) ticks[component] += own[thread].watch.ticks[component];
}

}  // namespace
