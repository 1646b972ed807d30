#include "plan.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <shared_mutex>
#include <stdexcept>
#include <tuple>
#include <unordered_map>

#include "coupling.h"

namespace clebsch {
namespace {

constexpr int kMaxDegree = 100;            // component indices are stored in a byte
constexpr int kPadding = 16;               // channels of a panel: one cache line of floats, two of doubles
constexpr int kMaxMultiplicity = 1 << 20;  // the product of three fits 64 bits
constexpr std::int64_t kMaxNumel = std::int64_t{1} << 40;

[[noreturn]] void fail(const std::string& what, std::string_view where) {
  throw std::invalid_argument("plan: " + what + " in '" + std::string(where) + "'");
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (std::size_t begin = 0;;) {
    const std::size_t end = text.find(separator, begin);
    parts.push_back(text.substr(begin, end - begin));
    if (end == std::string_view::npos) return parts;
    begin = end + 1;
  }
}

template <class N>
N number(std::string_view text, std::string_view where) {
  N value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    fail("cannot read a number '" + std::string(text) + "'", where);
  return value;
}

int padded(int mul) { return (mul + kPadding - 1) / kPadding * kPadding; }

struct Irreps {
  std::vector<Block> blocks;
  std::string parities;  // of each block, 'e' or 'o'
};

Irreps parse_irreps(std::string_view text) {
  Irreps irreps;
  if (text.empty()) return irreps;
  std::int64_t offset = 0, panel = 0;
  for (std::string_view part : split(text, '+')) {
    const std::size_t x = part.find('x');
    if (x == std::string_view::npos || part.size() < x + 3) fail("expected <mul>x<l><parity>", text);
    const char parity = part.back();
    if (parity != 'e' && parity != 'o') fail("expected parity e or o", text);
    const int mul = number<int>(part.substr(0, x), text);
    const int l = number<int>(part.substr(x + 1, part.size() - x - 2), text);
    if (mul < 0 || mul > kMaxMultiplicity)
      fail("multiplicity outside 0.." + std::to_string(kMaxMultiplicity), text);
    if (l < 0 || l > kMaxDegree) fail("degree outside 0.." + std::to_string(kMaxDegree), text);
    irreps.blocks.push_back({mul, l, offset, panel, padded(mul), false});
    irreps.parities.push_back(parity);
    offset += std::int64_t{mul} * (2 * l + 1);
    panel += std::int64_t{padded(mul)} * (2 * l + 1);
    if (panel > kMaxNumel) fail("irreps too large", text);
  }
  return irreps;
}

Mode parse_mode(std::string_view text, std::string_view where) {
  static constexpr std::array<std::string_view, 8> names = {"uvw", "uvu",  "uvv",   "uuw",
                                                            "uuu", "uvuv", "uvu<v", "u<vw"};
  const auto found = std::find(names.begin(), names.end(), text);
  if (found == names.end()) fail("unknown connection mode '" + std::string(text) + "'", where);
  return static_cast<Mode>(found - names.begin());
}

// Multiplicities that the mode demands; weights that the path takes.
std::int64_t weights_of(const Path& p, std::string_view where) {
  const std::int64_t u = p.in1.mul, v = p.in2.mul, w = p.out.mul;
  const auto require = [&](bool ok) {
    if (!ok) fail("multiplicities do not fit the connection mode", where);
  };
  const std::int64_t pairs = u * (u - 1) / 2;
  switch (p.mode) {
    case Mode::uvw:
      return u * v * w;
    case Mode::uvu:
      require(u == w);
      return u * v;
    case Mode::uvv:
      require(v == w);
      return u * v;
    case Mode::uuw:
      require(u == v && (p.weighted || w == 1));
      return u * w;
    case Mode::uuu:
      require(u == v && v == w);
      return u;
    case Mode::uvuv:
      require(u * v == w);
      return u * v;
    case Mode::uvu_triangle:
      require(u == v && pairs == w);
      return pairs;
    case Mode::triangle_w:
      require(u == v);
      return pairs * w;
  }
  return 0;
}

struct Registry {
  std::shared_mutex mutex;
  std::map<std::array<int, 3>, std::vector<CouplingEntry>> blocks;
};
Registry& registry() {
  static Registry& one = *new Registry;  // never destroyed: plans may outlive static destruction
  return one;
}

std::pair<const CouplingEntry*, int> coupling_of(int l1, int l2, int l3) {
  const std::array<int, 3> key{l1, l2, l3};
  const auto* end = coupling_blocks + coupling_block_count;
  const auto* block = std::lower_bound(coupling_blocks, end, key, [](const CouplingBlock& b, const auto& k) {
    return std::array<int, 3>{b.l1, b.l2, b.l3} < k;
  });
  if (block != end && block->l1 == l1 && block->l2 == l2 && block->l3 == l3)
    return {block->entries, block->size};
  std::shared_lock lock(registry().mutex);
  const auto found = registry().blocks.find(key);
  if (found == registry().blocks.end()) return {nullptr, 0};
  return {found->second.data(), static_cast<int>(found->second.size())};
}

// Marks the blocks that the path uses.
Path parse_path(std::string_view text, Irreps& in1, Irreps& in2, Irreps& out) {
  const auto fields = split(text, ' ');
  if (fields.size() != 6) fail("expected 'i1 i2 i_out mode w|- coefficient'", text);
  int odd = 0;
  const auto block = [&](Irreps& irreps, std::string_view field) {
    const int i = number<int>(field, text);
    if (i < 0 || i >= static_cast<int>(irreps.blocks.size()))
      fail("block index " + std::to_string(i) + " out of range", text);
    odd += irreps.parities[i] == 'o';
    irreps.blocks[i].used = true;
    return irreps.blocks[i];
  };
  Path p{};
  p.in1 = block(in1, fields[0]);
  p.in2 = block(in2, fields[1]);
  p.out = block(out, fields[2]);
  p.mode = parse_mode(fields[3], text);
  if (fields[4] != "w" && fields[4] != "-") fail("expected 'w' or '-'", text);
  p.weighted = fields[4] == "w";
  if (!p.weighted && (p.mode == Mode::uvw || p.mode == Mode::triangle_w))
    fail("this connection mode needs weights", text);
  p.coefficient = number<double>(fields[5], text);
  if (!std::isfinite(p.coefficient)) fail("the coefficient must be finite", text);
  const int l1 = p.in1.l, l2 = p.in2.l, l3 = p.out.l;
  if (l3 < std::abs(l1 - l2) || l3 > l1 + l2) fail("degrees violate the triangle rule", text);
  if (odd % 2) fail("the parity of the output must be the product of those of the inputs", text);
  const std::int64_t numel = weights_of(p, text);
  p.weight_numel = p.weighted ? numel : 0;
  if (p.mode == Mode::uuu && p.in2.mul == 1) p.mode = Mode::uvu;  // one copy: the same
  return p;
}

struct Coupling {
  std::vector<Cell> cells;
  std::vector<Term> terms;
  std::vector<double> values;
};

Coupling sparse_coupling(const Path& p, const CouplingEntry* entries, int count) {
  const int rows = 2 * p.in1.l + 1, columns = 2 * p.out.l + 1;
  Coupling c;
  std::vector<int> cell_of(rows * columns, -1);
  for (int n = 0; n < count; ++n) cell_of[entries[n].m3 * rows + entries[n].m1] = 0;
  for (int at = 0; at < rows * columns; ++at) {
    if (cell_of[at] < 0) continue;
    cell_of[at] = static_cast<int>(c.cells.size());
    c.cells.push_back({static_cast<unsigned char>(at % rows), static_cast<unsigned char>(at / rows)});
  }
  const auto add = [&](const CouplingEntry& e) {
    c.terms.push_back({cell_of[e.m3 * rows + e.m1], e.m1 * columns + e.m3, e.m2});
    c.values.push_back(e.value * p.coefficient);
  };
  std::vector<const CouplingEntry*> first(c.cells.size(), nullptr), others;
  for (int n = 0; n < count; ++n) {
    const CouplingEntry*& known = first[cell_of[entries[n].m3 * rows + entries[n].m1]];
    if (known) {
      others.push_back(entries + n);
    } else {
      known = entries + n;
    }
  }
  for (const CouplingEntry* e : first) add(*e);
  for (const CouplingEntry* e : others) add(*e);
  return c;
}

// value times component `source` of what is contracted, for component `result`.
struct Entry {
  int result, source;
  double value;
};
SortedTerms sort_terms(std::vector<Entry> entries, int results) {
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.result < b.result; });
  SortedTerms sorted;
  sorted.first.assign(results + 1, 0);
  for (const Entry& e : entries) {
    ++sorted.first[e.result + 1];
    sorted.source.push_back(e.source);
    sorted.values.push_back(e.value);
  }
  std::partial_sum(sorted.first.begin(), sorted.first.end(), sorted.first.begin());
  sorted.values_float.assign(sorted.values.begin(), sorted.values.end());
  return sorted;
}

bool suits_channels(const Path& p) {
  return p.mode == Mode::uuu || (p.mode == Mode::uvu && p.in2.mul == 1 && p.out.l <= kChannelwiseMaxDegree);
}

// Which kernel, by counting vector instructions of a row. Channels in the lanes: a vector of work for every
// padded channel block, M for eight rows at a time. Rows in the lanes: work for each channel, of which the
// forward pass of unrolled degrees needs no more than the arithmetic, and a transposition of every operand.
// Elementwise paths read tables in both; with channels in the lanes, once for up to four vectors.
struct Work {
  double forward = 0, derivatives = 0;
};
Lanes choose_lanes(const std::vector<Path>& paths, const Program& program) {
  Work channels, rows;
  for (const Path& p : paths) {
    if (!suits_channels(p)) return {false, false};
    const double vectors = p.in1.stride / kPadding, mul = p.in1.mul;
    if (p.mode == Mode::uuu) {
      channels.forward += p.term_count * (1.7 + 2 * vectors) + 20;
      channels.derivatives += p.term_count * (7 + 3 * vectors) + 50;
      rows.forward += 0.456 * mul * p.term_count;
      rows.derivatives += 1.26 * mul * p.term_count;
    } else {
      const double inputs = 2 * p.in1.l + 1, outputs = 2 * p.out.l + 1, work = inputs + p.cell_count;
      const double all = (work + 4) * vectors + 0.75 * p.term_count;
      channels.forward += all;
      channels.derivatives += all;
      rows.forward += 1.2 * (mul * (work + 2 * outputs) + p.term_count) / kPadding;
      rows.derivatives += 7.5 * mul * (inputs * outputs + 4) / kPadding;
    }
  }
  const double matrices = 2.0 * (program.single_end - program.single_begin);
  const double transposition = 0.45 * (program.dim1 + program.dim2 + program.weight_numel);
  return {!paths.empty() && channels.forward + matrices <= rows.forward + transposition,
          !paths.empty() && channels.derivatives + matrices <= rows.derivatives + 3 * transposition};
}

// Dense paths whose weights are met with lanes = output channels, where these fill half a vector of the
// widest kind or more. Short rows of weights are transposed whole if other paths ask for it.
bool choose_outputs(std::vector<Path>& paths, const Program& program) {
  const auto dense = [](const Path& p) { return connects_all(p.mode) && p.out.mul >= kPadding / 2; };
  const bool all = std::all_of(paths.begin(), paths.end(), dense);
  if (!all && program.weight_numel <= kWholeWeights) return false;
  bool any = false;
  for (Path& p : paths) any |= p.outputs_in_lanes = p.weighted && dense(p);
  return any;
}

// The order that is the least work, in vector instructions of a tile of rows: matrix products, and what the
// coupling does to the results, which are also loaded and stored. The gradient of the weights has copies of
// one operand in the lanes, padded; below half a vector of the widest kind that order is not worth it.
void choose_order(Path& p, const CouplingEntry* entries, int count) {
  if (p.mode != Mode::uvw) return;
  std::vector<bool> exchanged((2 * p.in2.l + 1) * (2 * p.out.l + 1));
  for (int n = 0; n < count; ++n) exchanged[entries[n].m2 * (2 * p.out.l + 1) + entries[n].m3] = true;
  const double u = p.in1.mul, v = p.in2.mul, w = p.out.mul, outputs = 2 * p.out.l + 1;
  const double cells_y = static_cast<double>(std::count(exchanged.begin(), exchanged.end(), true));
  struct Choice {
    Order order;
    double components, copies, cells, padding;  // of what meets the weights; results that the coupling meets
    bool fills;
  };
  const auto choice = [&](Order order, const Block& first, double copies, double cells) {
    const double padding = static_cast<double>(first.stride) / first.mul;
    return Choice{order, 2.0 * first.l + 1, copies, cells, padding, first.mul >= kPadding / 2};
  };
  Choice pairs = choice(Order::pairs, p.out, u * v, p.cell_count);
  pairs.fills = p.outputs_in_lanes;
  double least_forward = 0, least_backward = 0;
  for (const Choice& c : {pairs, choice(Order::x_first, p.in1, v * w, p.cell_count),
                          choice(Order::y_first, p.in2, u * w, cells_y)}) {
    const bool pairs_first = c.order == Order::pairs;
    const double all = u * v * w * c.components;
    const double made = (c.order == Order::y_first ? u : v) * count;
    const double forward = all + c.copies * (1.3 * c.cells + (pairs_first ? 1 : 3) * outputs) + made;
    const double backward = (pairs_first ? 1 : 2) * all + c.padding * all +
                            c.copies * (pairs_first ? 3.5 : 2.5) * c.cells + 2 * made;
    if (p.forward == Order::unchosen || forward < least_forward) {
      p.forward = c.order;
      least_forward = forward;
    }
    if (c.fills && (p.backward == Order::unchosen || backward < least_backward)) {
      p.backward = c.order;
      least_backward = backward;
    }
  }
}

// Orders of all paths, and where their gradients lie that are summed turned.
void choose_orders(std::vector<Path>& paths, Program& program) {
  for (Path& p : paths) {
    const auto [entries, count] = coupling_of(p.in1.l, p.in2.l, p.out.l);
    choose_order(p, entries, count);
    p.turned = program.turned_size;
    if (p.backward == Order::x_first) {
      program.x_in_lanes = true;
      program.turned_size += std::int64_t{p.in1.stride} * p.in2.mul * p.out.mul;
    } else if (p.backward == Order::y_first) {
      program.y_in_lanes = true;
      program.turned_size += std::int64_t{p.in2.stride} * p.in1.mul * p.out.mul;
    }
  }
}

std::int64_t row_length(const std::vector<Block>& blocks) {
  return blocks.empty() ? 0
                        : blocks.back().offset + std::int64_t{blocks.back().mul} * (2 * blocks.back().l + 1);
}

std::int64_t panel_length(const std::vector<Block>& blocks) {
  return blocks.empty()
             ? 0
             : blocks.back().panel + std::int64_t{blocks.back().stride} * (2 * blocks.back().l + 1);
}

std::pair<std::int64_t, std::int64_t> single_columns(const std::vector<Block>& in2, const Program& program) {
  if (!program.elementwise) return {0, program.dim2};
  const auto single = [](const Block& b) { return b.mul == 1; };
  const auto first = std::find_if(in2.begin(), in2.end(), single);
  const auto last = std::find_if(in2.rbegin(), in2.rend(), single);
  if (first == in2.end()) return {0, 0};
  return {first->offset, last->offset + 2 * last->l + 1};
}

bool whole_lines(const std::vector<Block>& blocks) {
  return std::all_of(blocks.begin(), blocks.end(), [](const Block& b) { return b.mul == b.stride; });
}

}  // namespace

// Elementwise paths by the two blocks that they start from.
void Plan::pair_blocks() {
  std::map<std::pair<std::int64_t, std::int64_t>, std::vector<int>> paths_of;
  for (int i = 0; i < static_cast<int>(paths_.size()); ++i) {
    const Path& p = paths_[i];
    if (p.mode == Mode::uuu) paths_of[{p.in1.offset, p.in2.offset}].push_back(i);
  }
  for (auto& [offsets, numbers] : paths_of) {
    ElementwisePair pair{};
    pair.in1 = paths_[numbers.front()].in1;
    pair.in2 = paths_[numbers.front()].in2;
    const int columns = 2 * pair.in2.l + 1, products = (2 * pair.in1.l + 1) * columns;
    std::vector<Entry> all;
    for (const int i : numbers) {
      Path& p = paths_[i];
      const auto [entries, count] = coupling_of(p.in1.l, p.in2.l, p.out.l);
      std::vector<Entry> own;
      p.at_pair = pair.output_count;
      for (const CouplingEntry* e = entries; e < entries + count; ++e) {
        const int product = e->m1 * columns + e->m2;
        own.push_back({e->m3, product, e->value * p.coefficient});
        all.push_back({product, p.at_pair + e->m3, e->value * p.coefficient});
      }
      p.to_out = sorted_terms_.emplace_back(sort_terms(std::move(own), 2 * p.out.l + 1)).view();
      pair.output_count += 2 * p.out.l + 1;
      pair.largest_degree = std::max({pair.largest_degree, p.in1.l, p.in2.l, p.out.l});
      pair.weighted |= p.weighted;
    }
    pair.to_pair = sorted_terms_.emplace_back(sort_terms(std::move(all), products)).view();
    pair.paths = pair_paths_.emplace_back(std::move(numbers)).data();
    pair.path_count = static_cast<int>(pair_paths_.back().size());
    program.most_products = std::max(program.most_products, products);
    program.most_outputs = std::max(program.most_outputs, pair.output_count);
    pairs_.push_back(pair);
  }
  program.pairs = pairs_.data();
  program.pair_count = static_cast<int>(pairs_.size());
}

const Plan& parse_plan(const std::string& text) {
  static std::shared_mutex& mutex = *new std::shared_mutex;
  static auto& plans = *new std::unordered_map<std::string, std::unique_ptr<Plan>>;
  {
    std::shared_lock lock(mutex);
    const auto found = plans.find(text);
    if (found != plans.end()) return *found->second;
  }
  const auto fields = split(text, ';');
  if (fields.size() != 3) fail("expected '<irreps1>*<irreps2>-><irreps_out>;<layout>;<paths>'", text);
  const std::size_t star = fields[0].find('*'), arrow = fields[0].find("->");
  if (star == std::string_view::npos || arrow == std::string_view::npos || arrow < star)
    fail("expected '<irreps1>*<irreps2>-><irreps_out>'", text);

  auto plan = std::make_unique<Plan>();
  Irreps in1 = parse_irreps(fields[0].substr(0, star)),
         in2 = parse_irreps(fields[0].substr(star + 1, arrow - star - 1)),
         out = parse_irreps(fields[0].substr(arrow + 2));
  if (fields[1] != "mul_ir" && fields[1] != "ir_mul")
    fail("unknown layout '" + std::string(fields[1]) + "'", text);
  Program& program = plan->program;
  program.mul_ir = fields[1] == "mul_ir";
  program.dim1 = row_length(in1.blocks);
  program.dim2 = row_length(in2.blocks);
  program.dim_out = row_length(out.blocks);
  program.panel1 = panel_length(in1.blocks);
  program.panel2 = panel_length(in2.blocks);
  program.panel_out = panel_length(out.blocks);
  program.whole_lines1 = !program.mul_ir && whole_lines(in1.blocks);
  program.whole_lines2 = !program.mul_ir && whole_lines(in2.blocks);
  program.whole_lines_out = !program.mul_ir && whole_lines(out.blocks);
  program.widest = kPadding;
  for (const Block& b : in1.blocks) program.widest = std::max(program.widest, b.stride);

  if (!fields[2].empty()) {
    for (std::string_view part : split(fields[2], ',')) {
      Path p = parse_path(part, in1, in2, out);
      p.weight = program.weight_numel;
      program.weight_numel += p.weight_numel;
      if (program.weight_numel > kMaxNumel) fail("too many weights", text);
      if (p.in1.mul == 0 || p.in2.mul == 0 || p.out.mul == 0) continue;
      const auto [entries, count] = coupling_of(p.in1.l, p.in2.l, p.out.l);
      if (entries == nullptr) {
        fail("no coupling for degrees (" + std::to_string(p.in1.l) + ", " + std::to_string(p.in2.l) + ", " +
                 std::to_string(p.out.l) + "); those above " + std::to_string(table_l_max) +
                 " are made known by clebsch.backend.register_couplings(plan)",
             part);
      }
      if (p.mode == Mode::uuu) {
        program.elementwise = true;
      } else {
        p.dense = program.dense_size;
        program.dense_size += std::int64_t{2 * p.in1.l + 1} * (2 * p.out.l + 1);
      }
      Coupling c = sparse_coupling(p, entries, count);
      p.cell_count = static_cast<int>(c.cells.size());
      p.term_count = count;
      p.cells = plan->cells_.emplace_back(std::move(c.cells)).data();
      p.terms = plan->terms_.emplace_back(std::move(c.terms)).data();
      p.values_float = plan->values_float_.emplace_back(c.values.begin(), c.values.end()).data();
      p.values = plan->values_.emplace_back(std::move(c.values)).data();
      plan->paths_.push_back(p);
    }
  }
  plan->in1_ = std::move(in1.blocks);
  plan->in2_ = std::move(in2.blocks);
  plan->out_ = std::move(out.blocks);
  std::tie(program.single_begin, program.single_end) = single_columns(plan->in2_, program);
  plan->channels = choose_lanes(plan->paths_, program);
  program.outputs_in_lanes = choose_outputs(plan->paths_, program);
  choose_orders(plan->paths_, program);
  plan->pair_blocks();
  program.paths = plan->paths_.data();
  program.in1 = plan->in1_.data();
  program.in2 = plan->in2_.data();
  program.out = plan->out_.data();
  program.path_count = static_cast<int>(plan->paths_.size());
  program.in1_count = static_cast<int>(plan->in1_.size());
  program.in2_count = static_cast<int>(plan->in2_.size());
  program.out_count = static_cast<int>(plan->out_.size());

  std::unique_lock lock(mutex);
  return *plans.try_emplace(text, std::move(plan)).first->second;
}

void register_coupling(int l1, int l2, int l3, int n, const int* m, const double* values) {
  if (l1 < 0 || l2 < 0 || l3 < std::abs(l1 - l2) || l3 > l1 + l2)
    throw std::invalid_argument("register_coupling: degrees violate the triangle rule");
  if (std::max({l1, l2, l3}) > kMaxDegree)
    throw std::invalid_argument("register_coupling: degrees above " + std::to_string(kMaxDegree) +
                                " are not supported");
  std::vector<CouplingEntry> entries;
  for (int i = 0; i < n; ++i) {
    const int* e = m + 3 * i;
    if (e[0] < 0 || e[0] > 2 * l1 || e[1] < 0 || e[1] > 2 * l2 || e[2] < 0 || e[2] > 2 * l3) {
      throw std::invalid_argument("register_coupling: component index out of range");
    }
    entries.push_back({static_cast<unsigned char>(e[0]), static_cast<unsigned char>(e[1]),
                       static_cast<unsigned char>(e[2]), values[i]});
  }
  std::unique_lock lock(registry().mutex);
  registry().blocks.try_emplace({l1, l2, l3}, std::move(entries));
}

bool has_coupling(int l1, int l2, int l3) { return coupling_of(l1, l2, l3).first != nullptr; }

}  // namespace clebsch
