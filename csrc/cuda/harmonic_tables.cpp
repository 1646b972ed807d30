#include <algorithm>
#include <cstring>

#include "cuda/device_harmonics.h"

namespace clebsch::cuda {
namespace {

template <class S>
int highest(const SphericalHarmonicsArgs<S>& args) {
  std::int64_t l_max = 0;
  for (int i = 0; i < args.num_ls; ++i) l_max = std::max(l_max, args.ls[i]);
  return static_cast<int>(l_max);
}

template <class S>
bool unrolled(const SphericalHarmonicsArgs<S>& args) {
  for (int i = 0; i < args.num_ls; ++i) {
    if (args.ls[i] != i) return false;
  }
  return args.num_ls > 0 && args.num_ls <= kUnrolledHarmonics + 1;
}

// Words of the steps, the sectoral ones, where degrees begin in the list of columns, and the columns.
template <class S>
struct Layout {
  using T = Arithmetic<S>;
  std::int64_t steps, sectoral, first, columns;
  explicit Layout(const SphericalHarmonicsArgs<S>& args) {
    const int l_max = highest(args);
    steps = step_count(l_max) * static_cast<std::int64_t>(sizeof(Step<T>)) / 8;
    sectoral = (std::int64_t{l_max + 1} * static_cast<std::int64_t>(sizeof(T)) + 7) / 8;
    first = l_max + 2;
    columns = args.num_ls;
  }
};

}  // namespace

template <class S>
std::vector<std::int64_t> harmonic_words(const SphericalHarmonicsArgs<S>& args) {
  using T = Arithmetic<S>;
  if (unrolled(args)) return {};
  const Layout<S> layout(args);
  const int l_max = highest(args);
  std::vector<std::int64_t> words(
      static_cast<std::size_t>(layout.steps + layout.sectoral + layout.first + layout.columns));
  fill_steps(l_max, args.normalization, reinterpret_cast<Step<T>*>(words.data()),
             reinterpret_cast<T*>(words.data() + layout.steps));
  std::int64_t* first = words.data() + layout.steps + layout.sectoral;
  std::int64_t *column = first + layout.first, count = 0;
  for (std::int64_t l = 0; l <= l_max; ++l) {
    first[l] = count;
    std::int64_t at = 0;
    for (int i = 0; i < args.num_ls; ++i) {
      if (args.ls[i] == l) column[count++] = at;
      at += 2 * args.ls[i] + 1;
    }
  }
  first[l_max + 1] = count;
  return words;
}

template <class S>
HarmonicTables<Arithmetic<S>> view_harmonics(const SphericalHarmonicsArgs<S>& args,
                                             const std::int64_t* words) {
  using T = Arithmetic<S>;
  HarmonicTables<T> tables{};
  tables.l_max = highest(args);
  if (unrolled(args)) {
    fill_steps(tables.l_max, args.normalization, tables.step, tables.sectoral);
    return tables;
  }
  const Layout<S> layout(args);
  tables.more_steps = reinterpret_cast<const Step<T>*>(words);
  tables.more_sectoral = reinterpret_cast<const T*>(words + layout.steps);
  tables.first = words + layout.steps + layout.sectoral;
  tables.column = tables.first + layout.first;
  return tables;
}

template std::vector<std::int64_t> harmonic_words(const SphericalHarmonicsArgs<float>&);
template std::vector<std::int64_t> harmonic_words(const SphericalHarmonicsArgs<double>&);
template std::vector<std::int64_t> harmonic_words(const SphericalHarmonicsArgs<Half>&);
template std::vector<std::int64_t> harmonic_words(const SphericalHarmonicsArgs<BFloat16>&);
template HarmonicTables<Arithmetic<float>> view_harmonics(const SphericalHarmonicsArgs<float>&,
                                                          const std::int64_t*);
template HarmonicTables<Arithmetic<double>> view_harmonics(const SphericalHarmonicsArgs<double>&,
                                                           const std::int64_t*);
template HarmonicTables<Arithmetic<Half>> view_harmonics(const SphericalHarmonicsArgs<Half>&,
                                                         const std::int64_t*);
template HarmonicTables<Arithmetic<BFloat16>> view_harmonics(const SphericalHarmonicsArgs<BFloat16>&,
                                                             const std::int64_t*);

}  // namespace clebsch::cuda
