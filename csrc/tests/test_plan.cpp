// Plan strings: what is read, what is refused, and that damage does no harm.
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "coupling.h"
#include "plan.h"

namespace {

const std::string good = "3x0e+2x1o*1x0e+3x1o->3x0e+2x1o;mul_ir;0 0 0 uvu w 1.0,1 1 0 uvv - -0.5";

bool refused(const std::string& text) {
  return check::refusal([&] { clebsch::parse_plan(text); }).rfind("plan: ", 0) == 0;
}

}  // namespace

TEST(plans_are_read) {
  const clebsch::Program& p =
      clebsch::parse_plan("3x0e+2x1o*1x0e+3x1o->3x0e+2x1o;ir_mul;0 0 0 uvu w 1.5,1 1 0 uvv - -0.25").program;
  CHECK(p.dim1 == 9 && p.dim2 == 10 && p.dim_out == 9 && p.weight_numel == 3 && !p.mul_ir);
  CHECK(p.path_count == 2 && p.in1_count == 2 && p.in2_count == 2 && p.out_count == 2);
  CHECK(p.paths[0].weighted && p.paths[0].weight == 0 && p.paths[0].weight_numel == 3);
  CHECK(p.paths[0].term_count == 1 && p.paths[0].values[0] == 1.5);
  CHECK(!p.paths[1].weighted && p.paths[1].mode == clebsch::Mode::uvv && p.paths[1].term_count == 3);
  CHECK(p.paths[1].in1.offset == 3 && p.paths[1].in2.offset == 1 && p.paths[1].coefficient == -0.25);
  CHECK(&clebsch::parse_plan(good) == &clebsch::parse_plan(std::string(good)), "kept");
}

TEST(plans_without_anything) {
  for (const char* text :
       {"*->;mul_ir;", "*->;ir_mul;", "0x3e*->1x0e;mul_ir;", "0x1o*0x1o->0x0e;mul_ir;0 0 0 uuu w 1.0",
        "0x30e*1x30e->0x7e;mul_ir;0 0 0 uvu w 1.0"}) {
    CHECK(clebsch::parse_plan(text).program.path_count == 0, text);
  }
}

TEST(malformed_plans_are_refused) {
  for (const char* text : {"",
                           ";",
                           ";;",
                           ";;;",
                           "*",
                           "->",
                           "*->",
                           "*->;mul_ir",
                           "*->;mul_ir;;",
                           "->*;mul_ir;",
                           "*->;;",
                           "*->;mulir;",
                           "1*->;mul_ir;",
                           "1x*->;mul_ir;",
                           "x0e*->;mul_ir;",
                           "1x0*->;mul_ir;",
                           "1x0e+*->;mul_ir;",
                           "+1x0e*->;mul_ir;",
                           "-1x0e*->;mul_ir;",
                           "1x-1e*->;mul_ir;",
                           "1x101e*->;mul_ir;",
                           "2147483647x0e*->;mul_ir;",
                           "2147483648x0e*->;mul_ir;",
                           "1x0e*1x0e->1x0e;mul_ir;,",
                           "1x0e*1x0e->1x0e;mul_ir; ",
                           "1x0e*1x0e->1x0e;mul_ir;0 0 0 uvu w",
                           "1x0e*1x0e->1x0e;mul_ir;1 0 0 uvu w 1.0",
                           "1x0e*1x0e->1x0e;mul_ir;-1 0 0 uvu w 1.0",
                           "1x0e*1x0e->1x0e;mul_ir;0 0 0 vuv w 1.0",
                           "1x0e*1x0e->1x0e;mul_ir;0 0 0 uvu x 1.0",
                           "1x0e*1x0e->1x0e;mul_ir;0 0 0 uvu w nan",
                           "1x0e*1x0e->1x0e;mul_ir;0 0 0 uvu w inf",
                           "1x0e*1x0e->1x0e;mul_ir;0 0 0 uvu w 1e999",
                           "1x0e*1x0e->1x0o;mul_ir;0 0 0 uvu w 1.0",
                           "1x0e*1x0e->1x1e;mul_ir;0 0 0 uvu w 1.0",
                           "2x0e*1x0e->1x0e;mul_ir;0 0 0 uvu w 1.0",
                           "1x0e*1x0e->1x0e;mul_ir;0 0 0 uvw - 1.0",
                           "1x9e*1x0e->1x9e;mul_ir;0 0 0 uvu w 1.0",
                           "1048576x0e*1048576x0e->1048576x0e;mul_ir;0 0 0 uvw w 1.0"}) {
    CHECK(refused(text), text);
  }
}

TEST(couplings_can_be_registered) {
  const int m[] = {0, 0, 0, 1, 0, 1};
  const double values[] = {0.25, -0.5};
  const std::string text = "1x20e*1x0e->1x20e;mul_ir;0 0 0 uvu w 2.0";
  CHECK(!clebsch::has_coupling(20, 0, 20) && refused(text));
  clebsch::register_coupling(20, 0, 20, 2, m, values);
  CHECK(clebsch::has_coupling(20, 0, 20));
  const clebsch::Program& p = clebsch::parse_plan(text).program;
  CHECK(p.paths[0].term_count == 2 && p.paths[0].values[0] == 0.5 && p.paths[0].values[1] == -1);
  CHECK(!check::refusal([&] { clebsch::register_coupling(1, 1, 3, 0, nullptr, nullptr); }).empty());
  CHECK(!check::refusal([&] { clebsch::register_coupling(-1, 1, 1, 0, nullptr, nullptr); }).empty());
  CHECK(!check::refusal([&] { clebsch::register_coupling(101, 0, 101, 2, m, values); }).empty());
  const int outside[] = {0, 1, 0};
  CHECK(!check::refusal([&] { clebsch::register_coupling(30, 0, 30, 1, outside, values); }).empty());
}

TEST(damaged_plans_do_no_harm) {
  std::mt19937 generator(0);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(generator() % n); };
  const std::string letters("0123456789xeo+*->;, uvw<.muli_r\0\xff", 34);
  const std::vector<std::string> texts = {
      good, "3x2e+1x0o*4x1o->3x3o+12x1o;ir_mul;0 0 0 uvu w 1.0,0 0 1 uvuv - -0.25,0 0 0 uvu - 2e-05",
      "4x1o*4x1o->6x1e+5x2e;mul_ir;0 0 0 uvu<v w 1.0,0 0 1 u<vw w 0.5"};
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text = texts[below(texts.size())];
    for (std::size_t n = below(4); n-- > 0;) {
      const std::size_t at = below(text.size() + 1);
      text.erase(at, below(4));
      for (std::size_t k = below(4); k-- > 0;) text.insert(at, 1, letters[below(letters.size())]);
    }
    const std::string message = check::refusal([&] { clebsch::parse_plan(text); });
    CHECK(message.empty() || message.rfind("plan: ", 0) == 0, text, message);
    accepted += message.empty();
  }
  CHECK(accepted > 100, accepted);
}
