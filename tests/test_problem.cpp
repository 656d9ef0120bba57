// Geometry: index arithmetic against enumeration, the text form, derived shapes and layouts,
// counts, refusals.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "cases.hpp"
#include "unshared.hpp"

using namespace unshared;

namespace {

Layout layout(std::initializer_list<std::int64_t> shape) {  // C-contiguous
  Layout l;
  for (std::int64_t size : shape) l.shape[l.rank++] = size;
  std::int64_t stride = 1;
  for (int d = l.rank - 1; d >= 0; --d) {
    l.stride[d] = stride;
    stride *= l.shape[d];
  }
  return l;
}

Extents each(std::initializer_list<std::int64_t> values) {
  Extents e{static_cast<int>(values.size()), false, {}};
  std::copy(values.begin(), values.end(), e.value);
  return e;
}

Arguments forward_of(Layout x, Layout w) {
  Arguments a;
  a.x = x;
  a.w = w;
  return a;
}

std::string refusal(const Arguments& arguments) {
  try {
    make_problem(arguments);
  } catch (const Error& error) {
    CHECK(error.kind == Error::Kind::value);
    CHECK(std::string(error.what())
              .find("argument '" + error.argument + "': expected " + error.expected + ", found " +
                    error.found) != std::string::npos);
    return error.argument;
  }
  return "accepted";
}

// Whether two indices share an element, by laying the array out.
bool overlaps(const Layout& l) {
  std::set<std::int64_t> seen;
  std::vector<std::int64_t> at(static_cast<std::size_t>(l.rank));
  for (std::int64_t e = 0; e < l.elements(); ++e) {
    std::int64_t flat = e, offset = 0;
    for (int d = l.rank - 1; d >= 0; --d) {
      offset += flat % l.shape[d] * l.stride[d];
      flat /= l.shape[d];
    }
    if (!seen.insert(offset).second) return true;
  }
  return false;
}

}  // namespace

TEST_CASE("source and reached are inverse to each other and agree with the definition") {
  for (std::int64_t input : {1, 2, 5})
    for (std::int64_t kernel : {1, 2, 3})
      for (std::int64_t stride : {1, 2, 3})
        for (std::int64_t dilation : {1, 2})
          for (std::int64_t input_dilation : {1, 2, 3})
            for (std::int64_t low : {0, 1, 4})
              for (std::int64_t high : {0, 2}) {
                Axis axis{input, 0, kernel, stride, dilation, input_dilation, low, high};
                axis.output = axis.outputs();
                std::vector<std::int64_t> padded(static_cast<std::size_t>(low),
                                                 -1);  // which input stands where
                for (std::int64_t i = 0; i < input; ++i) {
                  if (i > 0)
                    padded.insert(padded.end(), static_cast<std::size_t>(input_dilation - 1), -1);
                  padded.push_back(i);
                }
                padded.insert(padded.end(), static_cast<std::size_t>(high), -1);
                std::int64_t outputs = 0;
                for (std::int64_t o = 0; o * stride + (kernel - 1) * dilation <
                                         static_cast<std::int64_t>(padded.size());
                     ++o, ++outputs)
                  for (std::int64_t k = 0; k < kernel; ++k) {
                    const std::int64_t i =
                        padded[static_cast<std::size_t>(o * stride + k * dilation)];
                    CHECK(axis.source(o, k) == i);
                    if (i >= 0) CHECK(axis.reached(i, k) == o);
                  }
                CHECK(axis.output == outputs);
                for (std::int64_t i = 0; i < input; ++i)
                  for (std::int64_t k = 0; k < kernel; ++k)
                    if (const std::int64_t o = axis.reached(i, k); o >= 0)
                      CHECK(axis.source(o, k) == i);
              }
}

TEST_CASE("the text form reads back to the same problem") {
  for (const std::string& line : cases_of(UNSHARED_CASES)) {
    const Problem problem = parse_problem(line);
    const std::string text = to_string(problem);
    CHECK_MESSAGE(parse_problem(text) == problem, line, " -> ", text);
    CHECK(to_string(parse_problem(text)) == text);
    CHECK(hash(parse_problem(text)) == hash(problem));
  }
  CHECK(to_string(parse_problem("k3x2 i8x7 a3>b8 n4 g1 s1 p0:0 d1x1 e1")) == "n4 a3>b8 i8x7 k3x2");
  CHECK(to_string(parse_problem("n2 a4>b6 g2 i9 k2 s3 d2 p1:2 e2")) ==
        "n2 a4>b6 g2 i9 k2 s3 p1:2 d2 e2");
  CHECK(to_string(parse_problem("m3 n2 a3>b5 i4x6 k3 x:nmia w:oakbm")) ==
        "m3 n2 a3>b5 i4x6 k3x3 x:nmia w:oakbm");
  const std::string strides = "n2 a3>b5 i4x6 k3x3 x:[-72,24,6,1] y:[80,16,4,1]";
  CHECK(to_string(parse_problem(strides)) == "n2 a3>b5 i4x6 k3x3 x:[-72,24,6,1] y:[80,16,4,1]");
  for (const char* repeated :  // operands whose elements share memory
       {"n2 a3>b5 i4 k3 y:[0,2,1]", "m3 n2 a3>b5 i4 k3 x:[0,12,4,1]",
        "m3 n2 a3>b5 i4 k3 y:[0,10,2,1]", "n2 a3>b5 i4 k3 x:[0,4,1] y:[0,2,1]"})
    CHECK(to_string(parse_problem(repeated)) == repeated);
  for (const char* bad :
       {"", "n4", "n4 a3b8 i5 k3", "n4 a3>b8 i5 k3 q7", "n4 a3>b8 i5 k3x3", "n4 a3>b8 i5 k9",
        "n4 a3>b8 i5 k3 s", "n4 a3>b8 i5 k3 s0", "n4 a3>b8 i5 k3 x:nn", "n4 a3>b8 i5 k3 x:[1]",
        "n-1 a3>b8 i5 k3", "n99999999999 a3>b8 i5 k3", "n1 a3>b8 g2 i5 k3", "n1 a1>b1 i1x1x1x1 k1"})
    CHECK_THROWS_AS(parse_problem(bad), Error);
}

TEST_CASE("counts agree with enumeration") {
  for (const std::string& line : cases_of(UNSHARED_CASES)) {
    const Problem p = parse_problem(line);
    if (p.flops() > 1e8) continue;
    double pairs = 1;
    std::int64_t forward = p.in_channels, input = p.out_channels;
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& axis = p.axes[s];
      std::vector<std::int64_t> by_output(static_cast<std::size_t>(axis.output)),
          by_input(static_cast<std::size_t>(axis.input));
      for (std::int64_t o = 0; o < axis.output; ++o)
        for (std::int64_t k = 0; k < axis.kernel; ++k)
          if (const std::int64_t i = axis.source(o, k); i >= 0) {
            ++by_output[static_cast<std::size_t>(o)];
            ++by_input[static_cast<std::size_t>(i)];
          }
      const auto most = [](const auto& counts) {
        return counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
      };
      double sum = 0;
      for (std::int64_t count : by_output) sum += static_cast<double>(count);
      pairs *= sum;
      forward *= most(by_output);
      input *= most(by_input);
    }
    CHECK(p.terms(Face::forward) == forward);
    CHECK(p.terms(Face::grad_input) == input);
    CHECK(p.terms(Face::grad_weight) == p.batch);
    CHECK(p.flops() == 2 * pairs * static_cast<double>(p.batch * p.in_channels * p.out_channels));
    CHECK(p.flops(DType::complex64) == 4 * p.flops());
  }
  const Problem p = parse_problem("n2 a3>b5 i4 k3");
  CHECK(p.bytes(DType::float16) == 2 * (2 * 3 * 4 + 2 * 3 * 5 * 3 + 2 * 5 * 2));
}

TEST_CASE(
    "results take the memory order of their partner, weight gradients [out][C_in][kernel][C_out]") {
  Layout x = layout({2, 6, 7, 3});  // channels-last: (N, H, W, C) seen as (N, C, H, W)
  x = {4, {2, 3, 6, 7}, {126, 1, 21, 3}};
  const Problem p = make_problem(forward_of(x, layout({5, 5, 8, 3, 2, 3})));
  CHECK(p.layout(Seat::y) == Layout{4, {2, 8, 5, 5}, {200, 1, 40, 8}});
  x = {4, {2, 3, 6, 1}, {18, 1, 3, 77}};  // also where one extent says nothing
  CHECK(make_problem(forward_of(x, layout({5, 1, 8, 3, 2, 1}))).layout(Seat::y) ==
        Layout{4, {2, 8, 5, 1}, {40, 1, 8, 0}});
  x = {4, {2, 3, 6, 7}, {126, 1, 21, 3}};

  Arguments back;
  back.face = Face::grad_weight;
  back.x = x;
  back.y = layout({2, 8, 5, 5});
  back.kernel_size = each({2, 3});
  CHECK(make_problem(back).layout(Seat::w) ==
        Layout{6, {5, 5, 8, 3, 2, 3}, {720, 144, 1, 48, 24, 8}});
}

TEST_CASE("a result takes the memory order that is asked for") {
  Arguments a = forward_of(layout({2, 3, 6, 7}), layout({5, 5, 8, 3, 2, 3}));
  a.result_order = "0231";
  CHECK(make_problem(a).layout(Seat::y) == Layout{4, {2, 8, 5, 5}, {200, 1, 40, 8}});
  a.x = {4, {2, 3, 6, 7}, {126, 1, 21, 3}};
  a.result_order = "";  // row-major, whatever x is
  CHECK(make_problem(a).layout(Seat::y) == layout({2, 8, 5, 5}));
  for (const char* bad : {"023", "0230", "0239", "01234", "x231"}) {
    a.result_order = bad;
    CHECK(refusal(a) == "order");
  }
}

TEST_CASE("a layer without tensors: sizes, and those of a transposed one") {
  Arguments a;
  a.operation = "Layer";
  a.sizes = {6, 4};
  a.input_size = each({9, 8});
  a.kernel_size = each({3, 2});
  a.stride = each({2, 1});
  a.groups = 2;
  const Problem p = make_problem(a);
  CHECK(p.layout(Seat::x) == parse_problem("n1 a6>b4 g2 i9x8 k3x2 s2x1").layout(Seat::x));
  CHECK(p == parse_problem("n1 a6>b4 g2 i9x8 k3x2 s2x1"));

  const auto with = [&](auto change) {
    Arguments changed = a;
    change(changed);
    try {
      make_problem(changed);
    } catch (const Error& error) {
      CHECK(error.operation == "Layer");
      return error.argument;
    }
    return std::string("accepted");
  };
  CHECK(with([](Arguments& b) { b.sizes->in_channels = 5; }) == "groups");
  CHECK(with([](Arguments& b) { b.sizes->out_channels = -2; }) == "out_channels");
  CHECK(with([](Arguments& b) { b.input_size = Extents{4, false, {9, 8, 7}}; }) == "input_size");
  CHECK(with([](Arguments& b) { b.input_size = each({9, -1}); }) == "input_size");
  CHECK(with([](Arguments& b) { b.kernel_size = each({3}); }) == "kernel_size");
  CHECK(with([](Arguments& b) { b.kernel_size = each({10, 2}); }) == "kernel_size");
  CHECK(with([](Arguments& b) { b.output_padding = each({1, 1}); }) == "output_padding");
  CHECK(with([](Arguments& b) { b.output_padding = each({1, 0}); }) == "accepted");
  CHECK(with([](Arguments& b) {
          b.output_padding = each({1, 0});
          b.padding.rule = Padding::Rule::same;
        }) == "padding");
  CHECK(with([](Arguments& b) {
          b.output_padding = each({1, 0});
          b.padding.low = Extents::all(20);
        }) == "padding");

  // The extents of x are the least that the taps of all places reach, and output_padding more.
  a.groups = 1;
  for (std::int64_t size : {1, 2, 5})
    for (std::int64_t kernel : {1, 2, 4})
      for (std::int64_t stride : {1, 2, 3})
        for (std::int64_t dilation : {1, 2})
          for (std::int64_t padding : {0, 1})
            for (std::int64_t more = 0; more < stride; ++more) {
              a.input_size = each({size});
              a.kernel_size = each({kernel});
              a.stride = each({stride});
              a.dilation = each({dilation});
              a.padding.low = a.padding.high = each({padding});
              a.output_padding = each({more});
              const std::int64_t last = (size - 1) * stride + (kernel - 1) * dilation;
              const std::int64_t extent = last + 1 - 2 * padding + more;
              if (extent < 1) continue;
              const Problem t = make_problem(a);
              CHECK(t.spatial_axis(0).input == extent);
              CHECK(t.spatial_axis(0).output == size);
              CHECK(t.in_channels == 4);  // of x, which is the result
              CHECK(t.out_channels == 6);
            }
}

TEST_CASE("padding rules") {
  Arguments a = forward_of(layout({1, 1, 7, 8}), layout({4, 4, 1, 1, 3, 2}));
  a.stride = Extents::all(2);
  a.padding.rule = Padding::Rule::same;
  const Problem p = make_problem(a);
  CHECK(p.axes[0].padding_low == 1);
  CHECK(p.axes[0].padding_high == 1);
  CHECK(p.axes[1].padding_low == 0);
  CHECK(p.axes[1].padding_high == 0);
}

TEST_CASE("refusals name the argument") {
  const Layout x = layout({2, 4, 6, 7}), w = layout({4, 5, 6, 4, 3, 3});
  CHECK(refusal(forward_of(x, w)) == "accepted");
  CHECK(refusal(forward_of(layout({2, 4}), w)) == "x");
  CHECK(refusal(forward_of(x, layout({4, 5, 6, 4, 3}))) == "w");
  CHECK(refusal(forward_of(x, layout({5, 4, 6, 4, 3, 3}))) == "w");
  CHECK(refusal(forward_of(x, layout({4, 5, 6, 3, 3, 3}))) == "w");
  CHECK(refusal(forward_of(x, layout({4, 5, 6, 4, 9, 3}))) == "w");
  CHECK(refusal(forward_of(x, layout({4, 5, 6, 4, 0, 3}))) == "w");
  const auto with = [&](auto change) {
    Arguments a = forward_of(x, w);
    change(a);
    return refusal(a);
  };
  CHECK(with([](Arguments& a) { a.stride = each({1, 1, 1}); }) == "stride");
  CHECK(with([](Arguments& a) { a.stride = Extents{0, false, {}}; }) == "stride");
  CHECK(with([](Arguments& a) { a.stride = Extents::all(0); }) == "stride");
  CHECK(with([](Arguments& a) { a.dilation = Extents::all(-1); }) == "dilation");
  CHECK(with([](Arguments& a) { a.input_dilation = Extents::all(INT64_MAX); }) == "input_dilation");
  CHECK(with([](Arguments& a) { a.padding.low = Extents::all(-1); }) == "padding");
  CHECK(with([](Arguments& a) { a.padding.high = Extents::all(max_extent + 1); }) == "padding");
  CHECK(with([](Arguments& a) { a.groups = 0; }) == "groups");
  CHECK(with([](Arguments& a) { a.groups = 3; }) == "groups");
  CHECK(with([&](Arguments& a) { a.y = layout({2, 6, 5, 4}); }) == "out");
  CHECK(with([&](Arguments& a) { a.y = layout({3, 6, 4, 5}); }) == "out");
  CHECK(with([&](Arguments& a) { a.y = layout({2, 6, 4, 5}); }) == "accepted");
  CHECK(with([&](Arguments& a) { (a.y = layout({2, 6, 4, 5}))->stride[0] = 0; }) == "out");
  CHECK(with([&](Arguments& a) { a.x->stride[0] = 0; }) == "accepted");
  CHECK(with([&](Arguments& a) { a.x->stride[0] = INT64_MAX / 2; }) == "x");
  CHECK(with([&](Arguments& a) { a.x->stride[0] = INT64_MIN; }) == "x");

  Arguments back;
  back.face = Face::grad_input;
  back.y = layout({2, 6, 4, 5});
  back.w = w;
  CHECK(refusal(back) == "input_size");
  back.input_size = each({6, 7});
  CHECK(refusal(back) == "accepted");
  back.input_size = each({6, 9});
  CHECK(refusal(back) == "input_size");
  back.input_size = each({6, 7});
  back.y = layout({2, 6, 5, 4});
  CHECK(refusal(back) == "dy");
  back = {};
  back.face = Face::grad_weight;
  back.x = x;
  back.y = layout({2, 6, 4, 5});
  CHECK(refusal(back) == "kernel_size");
  back.kernel_size = each({3, 3});
  CHECK(refusal(back) == "accepted");
  back.kernel_size = each({9, 3});
  CHECK(refusal(back) == "kernel_size");
  back.kernel_size = each({3, 3});
  back.y = layout({3, 6, 4, 5});
  CHECK(refusal(back) == "dy");
}

TEST_CASE("a result overlaps itself exactly when two of its indices share an element") {
  std::mt19937 random(1);
  int refused = 0, accepted = 0;
  for (int trial = 0; trial < 4000; ++trial) {
    Arguments a = forward_of(layout({3, 1, 4, 2}), layout({4, 2, 3, 1, 1, 1}));
    Layout y = layout({3, 3, 4, 2});
    for (int d = 0; d < 4; ++d) y.stride[d] = static_cast<std::int64_t>(random() % 121) - 60;
    a.y = y;
    const bool shared = overlaps(y);
    CHECK((refusal(a) == "out") == shared);
    ++(shared ? refused : accepted);
  }
  CHECK(refused > 100);
  CHECK(accepted > 100);
}
