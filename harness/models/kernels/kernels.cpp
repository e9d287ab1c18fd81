// The kernels, compiled once for each instruction set, with -DVARIANT=its name (hatch_build.py).
//
// What is not exported lives in the anonymous namespace, templates and inline functions too: the linker would merge
// functions of equal names, and hand one compiled for AVX-512 to every processor. No library of C++.

#include <stdint.h>

#define CONCAT_(a, b) a##_##b
#define CONCAT(a, b) CONCAT_(a, b)
#define EXPORT(name) __attribute__((visibility("default"))) CONCAT(name, VARIANT)

extern "C" {

// How many floats a vector register of this variant holds.
int EXPORT(floats_per_vector)(void) {
#if defined(__AVX512F__)
  return 16;
#elif defined(__AVX__)
  return 8;
#else
  return 4;
#endif
}

}  // extern "C"
