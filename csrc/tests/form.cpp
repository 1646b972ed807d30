#include "form.h"

namespace {

const clebsch::CouplingBlock& coupling(int l1, int l2, int l3) {
  for (int i = 0; i < clebsch::coupling_block_count; ++i) {
    const clebsch::CouplingBlock& b = clebsch::coupling_blocks[i];
    if (b.l1 == l1 && b.l2 == l2 && b.l3 == l3) return b;
  }
  throw std::runtime_error("the test has degrees beyond the table");
}

std::int64_t offset(const std::vector<Irrep>& irreps, int block) {
  std::int64_t sum = 0;
  for (int i = 0; i < block; ++i) sum += std::int64_t{irreps[i].mul} * (2 * irreps[i].l + 1);
  return sum;
}

std::int64_t position(const std::vector<Irrep>& irreps, int block, int channel, int component, bool mul_ir) {
  const Irrep& b = irreps[block];
  return offset(irreps, block) + (mul_ir ? channel * (2 * b.l + 1) + component : component * b.mul + channel);
}

struct Copies {
  int u, v, w;
};

// In the order of the weights.
std::vector<Copies> copies(const std::string& mode, int mul1, int mul2, int mul3) {
  std::vector<Copies> all;
  const bool triangle = mode == "uvu<v" || mode == "u<vw", diagonal = mode == "uuw" || mode == "uuu";
  const bool fan = mode == "uvw" || mode == "uuw" || mode == "u<vw";
  int pair = 0;
  for (int u = 0; u < mul1; ++u) {
    for (int v = 0; v < mul2; ++v) {
      if ((triangle && v <= u) || (diagonal && v != u)) continue;
      const int single = mode == "uvv" ? v : mode == "uvuv" ? u * mul2 + v : mode == "uvu<v" ? pair : u;
      for (int w = 0; w < (fan ? mul3 : 1); ++w) all.push_back({u, v, fan ? w : single});
      ++pair;
    }
  }
  return all;
}

}  // namespace

Form::Form(const Description& d) {
  dim[0] = offset(d.out, static_cast<int>(d.out.size()));
  dim[1] = offset(d.in1, static_cast<int>(d.in1.size()));
  dim[2] = offset(d.in2, static_cast<int>(d.in2.size()));
  for (const Coupled& p : d.paths) {
    const Irrep &a = d.in1[p.in1], &b = d.in2[p.in2], &c = d.out[p.out];
    const clebsch::CouplingBlock& block = coupling(a.l, b.l, c.l);
    for (const Copies& k : copies(p.mode, a.mul, b.mul, c.mul)) {
      for (int n = 0; n < block.size; ++n) {
        const clebsch::CouplingEntry& e = block.entries[n];
        terms.push_back(
            {{position(d.out, p.out, k.w, e.m3, d.mul_ir), position(d.in1, p.in1, k.u, e.m1, d.mul_ir),
              position(d.in2, p.in2, k.v, e.m2, d.mul_ir), p.weighted ? dim[3] : -1},
             e.value * p.coefficient});
      }
      if (p.weighted) ++dim[3];
    }
  }
}
