// The kernels, compiled once for each instruction set, with -DVARIANT=its name (hatch_build.py).
//
// What is not exported lives in the anonymous namespace, templates and inline functions too: the linker would merge
// functions of equal names, and hand one compiled for AVX-512 to every processor. No library of C++.

#include "camixersr.h"
#include "convolution.h"
#include "depthwise.h"
#include "projection.h"
#include "swinir.h"

#define CONCAT_(a, b) a##_##b
#define CONCAT(a, b) CONCAT_(a, b)
#define EXPORT(name) __attribute__((visibility("default"))) CONCAT(name, VARIANT)

namespace {

template <template <bool> class Work, typename Use, typename... Arguments>
auto use(bool half, Use run, Arguments &...arguments) {
  if (half) {
    Work<true> work(arguments...);
    return run(work);
  }
  Work<false> work(arguments...);
  return run(work);
}

}  // namespace

extern "C" {

// Bytes of workspace that a pass needs for a block as wide as this one inside.
int64_t EXPORT(camixersr_workspace)(const CAMixerPass *pass, const CAMixerBlock *block) {
  return use<CAMixerWork>(pass->half, [](auto &work) { return (int64_t)work.divide(nullptr); }, *pass, *block);
}

void EXPORT(camixersr_predict)(const CAMixerPass *pass, const CAMixerBlock *block) {
  use<CAMixerWork>(pass->half, [&](auto &work) {
    work.divide(pass->workspace);
    work.run_prediction();
  }, *pass, *block);
}

// Returns 1 where offsets were not finite, and the result is not to be used.
int EXPORT(camixersr_transform)(const CAMixerPass *pass, const CAMixerBlock *block) {
  return use<CAMixerWork>(pass->half, [&](auto &work) {
    work.divide(pass->workspace);
    return work.run_rest();
  }, *pass, *block);
}

void EXPORT(camixersr_begin)(const CAMixerPass *pass, const float *features) {
  CAMixerBlock none = {};
  use<CAMixerWork>(pass->half, [&](auto &work) {
    work.divide(pass->workspace);
    work.begin(features);
  }, *pass, none);
}

void EXPORT(camixersr_finish_group)(const CAMixerPass *pass, const float *weight, const float *bias, float *start) {
  CAMixerBlock none = {};
  use<CAMixerWork>(pass->half, [&](auto &work) {
    work.divide(pass->workspace);
    work.finish_group(weight, bias, start);
  }, *pass, none);
}

int64_t EXPORT(convolution_workspace)(const Convolution *convolution) {
  return use<ConvolutionWork>(convolution->half, [](auto &work) { return (int64_t)work.divide(nullptr); }, *convolution);
}

int EXPORT(convolution_run)(const Convolution *convolution) {
  return use<ConvolutionWork>(convolution->half, [&](auto &work) {
    work.divide(convolution->workspace);
    work.run();
    return 0;
  }, *convolution);
}

int64_t EXPORT(swinir_workspace)(const SwinLayer *layer) {
  return use<SwinWork>(layer->half, [](auto &work) { return (int64_t)work.divide(nullptr); }, *layer);
}

int EXPORT(swinir_run)(const SwinLayer *layer) {
  return use<SwinWork>(layer->half, [&](auto &work) {
    work.divide(layer->workspace);
    work.run();
    return 0;
  }, *layer);
}

int64_t EXPORT(normalisation_workspace)(const Normalisation *normalisation) { return measure(*normalisation); }

int EXPORT(normalisation_run)(const Normalisation *normalisation) {
  run(*normalisation);
  return 0;
}

int64_t EXPORT(mixer_convolutions_workspace)(const MixerConvolutions *convolutions) {
  return (int64_t)MixerConvolutionsWork(*convolutions).divide(nullptr);
}

int EXPORT(mixer_convolutions_run)(const MixerConvolutions *convolutions) {
  MixerConvolutionsWork work(*convolutions);
  work.divide(convolutions->workspace);
  work.run();
  return 0;
}

int64_t EXPORT(gated_convolution_workspace)(const GatedConvolution *convolution) {
  return (int64_t)GatedConvolutionWork(*convolution).divide(nullptr);
}

int EXPORT(gated_convolution_run)(const GatedConvolution *convolution) {
  GatedConvolutionWork work(*convolution);
  work.divide(convolution->workspace);
  work.run();
  return 0;
}

int64_t EXPORT(projection_workspace)(const Projection *projection) {
  return (int64_t)ProjectionWork(*projection).divide(nullptr);
}

int EXPORT(projection_run)(const Projection *projection) {
  ProjectionWork work(*projection);
  work.divide(projection->workspace);
  work.run();
  return 0;
}

// The sizes of the structures above, which the callers in Python describe once more.
void EXPORT(measure_structures)(int64_t sizes[8]) {
  sizes[0] = sizeof(CAMixerPass), sizes[1] = sizeof(CAMixerBlock), sizes[2] = sizeof(Convolution);
  sizes[3] = sizeof(SwinLayer), sizes[4] = sizeof(Normalisation);
  sizes[5] = sizeof(MixerConvolutions), sizes[6] = sizeof(GatedConvolution);
  sizes[7] = sizeof(Projection);
}

}  // extern "C"
