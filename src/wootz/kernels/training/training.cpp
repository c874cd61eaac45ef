// The table of the training kernels; compiled once per instruction set, like `kernels.cpp`.

#include "training/attention.h"
#include "training/passes.h"
#include "training/product.h"
#include "training/training.h"

namespace wootz::WOOTZ_ISA {

extern const TrainingKernels training_kernels;
const TrainingKernels training_kernels = {product, attention,      attention_backward, norm,         norm_backward,
                                          gated,   gated_backward, rotate,             cross_entropy};

}  // namespace wootz::WOOTZ_ISA
