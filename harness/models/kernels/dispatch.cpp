// Which variants of kernels.cpp this processor runs. Compiled once, for the oldest processor.
//
// The levels are those of the x86-64 psABI; cpuid says what the processor has, xgetbv which registers the system keeps
// for a process. (macOS announces those of AVX-512 to processes that use them only: there v3 is the best.)

#include <stdint.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

#ifdef __x86_64__

bool all(unsigned flags, unsigned wanted) { return (flags & wanted) == wanted; }

const char *find_variants() {
  unsigned a, b, c, d, e, f, g, h;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return "";
  if (!__get_cpuid(0x80000001, &e, &f, &g, &h)) return "";
  const unsigned basic = c, extended = g;
  if (!all(basic, bit_SSE3 | bit_SSSE3 | bit_CMPXCHG16B | bit_SSE41 | bit_SSE42 | bit_POPCNT)) return "";
  if (!all(extended, bit_LAHF_LM)) return "";

  if (!all(basic, bit_FMA | bit_MOVBE | bit_OSXSAVE | bit_AVX | bit_F16C)) return "v2";
  if (!all(extended, bit_LZCNT)) return "v2";
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return "v2";
  const unsigned highest = a, leaf7 = b;
  if (!all(leaf7, bit_AVX2 | bit_BMI | bit_BMI2)) return "v2";
  uint32_t kept, kept_above;
  __asm__ volatile("xgetbv" : "=a"(kept), "=d"(kept_above) : "c"(0));
  if (!all(kept, 0x06)) return "v2";  // xmm, ymm

  if (!all(leaf7, bit_AVX512F | bit_AVX512DQ | bit_AVX512CD | bit_AVX512BW | bit_AVX512VL)) return "v3 v2";
  if (!all(kept, 0xe6)) return "v3 v2";  // mask registers, the upper halves of zmm0-15, zmm16-31

  if (highest < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return "v4 v3 v2";
  return all(a, bit_AVX512BF16) ? "v4bf16 v4 v3 v2" : "v4 v3 v2";
}

#else

const char *find_variants() { return "neon"; }

#endif

}  // namespace

// The variants that this processor runs, best first, separated by spaces; none if it is too old for any.
EXPORT const char *harness_variants(void) { return find_variants(); }

// The digest of the sources (sources.py), and the compiler.
EXPORT const char *harness_sources(void) { return SOURCES; }
EXPORT const char *harness_compiler(void) {
  return "clang " TEXT(__clang_major__) "." TEXT(__clang_minor__) "." TEXT(__clang_patchlevel__);
}
