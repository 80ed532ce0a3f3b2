// What DeepSpeed's CPU operators use of torch/extension.h: tensors, registration and bindings. All of it, with the
// whole C++ frontend, takes most of the time that they are compiled in. Found first by ../../lean-g++.sh.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

namespace torch {
using namespace at;
constexpr auto kFloat32 = at::kFloat;
}  // namespace torch
