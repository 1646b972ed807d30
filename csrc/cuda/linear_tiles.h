// How the matrices of linear layers are cut on a device.
#pragma once

namespace clebsch::cuda {

constexpr int kLinearTile = 64;   // rows and columns of a block of threads' part of a product
constexpr int kLinearDepth = 16;  // of what is in shared memory at a time

}  // namespace clebsch::cuda
