// Which rows are one-hot: a warp for a row, which is read once.
#include "cuda/device.h"
#include "cuda/device_rows.h"

namespace clebsch::cuda {
inline namespace one_hot_kernels {

template <class T>
__global__ void __launch_bounds__(kWarp) find_ones(OneHotRows<T> a) {
  for (std::int64_t r = blockIdx.x; r < a.rows; r += gridDim.x) {
    const T* row = a.y.data + r * a.y.stride;
    std::int64_t others = 0, column = 0;  // what is not zero, and the columns of ones, summed
    std::int64_t ones = 0;
    for (std::int64_t c = threadIdx.x; c < a.columns; c += kWarp) {
      others += row[c] != T(0);
      ones += row[c] == T(1);
      if (row[c] == T(1)) column += c;
    }
    others = sum_lanes(others);
    ones = sum_lanes(ones);
    column = sum_lanes(column);
    if (threadIdx.x == 0) {
      a.found[r] = others == 1 && ones == 1 ? column : -1;
      a.index[r] = column;
    }
  }
}

}  // namespace one_hot_kernels

template <class T>
void launch_one_hot(const OneHotRows<T>& a, void* stream) {
  launch(&find_ones<T>, blocks_for(a.rows, 1), dim3(kWarp), 0, stream, a);
}

template void launch_one_hot(const OneHotRows<float>&, void*);
template void launch_one_hot(const OneHotRows<double>&, void*);

}  // namespace clebsch::cuda
