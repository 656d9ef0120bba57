// The choice among the kernels of CUDA (cuda/choice.hpp): sensible on the shapes people use, and its
// predicted times within reason. Nothing runs; no GPU is needed.
//
// Microseconds predicted for float32 with x:nia y:nob w:oakb, to be compared with a GPU (not run):
//
//       shape                            forward              grad_input           grad_weight
//                                        tile stream  lanes   tile stream  lanes   tile stream  lanes
//   S0  n100 a16>b16 i28x28 k3x3           21     38    315      15     41    293      17     36    217
//   S1  n32 a3>b64 i32x32 k3x3              7      9     65      38     59    144       7      9     20
//   S2  n128 a64>b64 i6x6 k3x3 p1          14     18    293      16     19    293      11     14    374
//   S3  n128 a16>b16 i63x63 k9x9         3709   4108  15141     562   1797  13223     520   1566  10400
//   S4  n128 a16>b16 i55x55 k7x7 s2       465    515   2085      70    227   1908      67    198   1432
//   S5  n8 a3>b16 i224x224 k3x3 p1        141    143    208     436    235    315     128    298    131
//   S6a n1 a64>b64 i56x56 k3x3 p1         214    129    699     240    129    699     138    311    751
//   S6b n8 (the same)                     222    132   1958     248    132   1958     156    335   2497
//   S6c n32                               310    310   7825     274    259   7825     217    418   8486
//   S6d n128                              697   1233  31295     749   1028  31295     654   1053  32439
//   S6e n1024                            5516   9852 250346    5928   8211 250346    5220   8410 256005
//   S7  n64 a256>b256 i14x14 k3x3 p1      325    574  14500     349    479  14500     328    529  16470
//   S8  n256 a512>b512 i7x7 k3x3 p1      1167   2067  52318    1254   1723  52318    1306   2104  64377
//   S9  n256 a64>b64 i28x28 k5x5 p2      2409   3211  40695     975   1339  40695     910   1462  44707
//   S10 n4 a8>b8 i128x256 k3x3 p1         140    115    104     144    117    104     132    464    124
#include <doctest/doctest.h>

#include <string>

#include "../cuda/choice.hpp"
#include "scalar.hpp"

using namespace unshared;
using cuda::Family;

namespace {

constexpr Face faces[] = {Face::forward, Face::grad_input, Face::grad_weight};

Family best(const std::string& text, Face face, DType dtype = DType::float32) {
  return cuda::predict(parse_problem(text), face, dtype).best;
}

// Shapes of images, with layouts left out.
const char* const shapes[] = {
    "n100 a16>b16 i28x28 k3x3",    "n32 a3>b64 i32x32 k3x3",       "n128 a64>b64 i6x6 k3x3 p1",
    "n128 a16>b16 i63x63 k9x9",    "n128 a16>b16 i55x55 k7x7 s2",  "n8 a3>b16 i224x224 k3x3 p1",
    "n1 a64>b64 i56x56 k3x3 p1",   "n8 a64>b64 i56x56 k3x3 p1",    "n32 a64>b64 i56x56 k3x3 p1",
    "n128 a64>b64 i56x56 k3x3 p1", "n64 a256>b256 i14x14 k3x3 p1", "n256 a512>b512 i7x7 k3x3 p1",
    "n256 a64>b64 i28x28 k5x5 p2", "n4 a8>b8 i128x256 k3x3 p1",    "n32 a64>b64 g64 i56x56 k3x3 p1",
    "n0 a3>b4 i5x5 k3x3",
};
const char* const layouts[] = {
    "", " w:oakb", " x:nia y:nob w:oakb", " x:nia y:nob w:obka", " x:ian y:obn w:oakb", " w:bako"};

}  // namespace

TEST_CASE("wide layers are computed in tiles, whichever way their weights run") {
  for (const char* layout : {" x:nia y:nob w:oakb", " x:nia y:nob w:obka", " x:ian y:obn w:oakb"})
    for (const char* shape : {"n100 a16>b16 i28x28 k3x3", "n128 a64>b64 i6x6 k3x3 p1",
                              "n128 a64>b64 i56x56 k3x3 p1", "n64 a256>b256 i14x14 k3x3 p1",
                              "n256 a512>b512 i7x7 k3x3 p1", "n256 a64>b64 i28x28 k5x5 p2"})
      for (Face face : faces) {
        CAPTURE(std::string(shape) + layout);
        CHECK(best(std::string(shape) + layout, face) == Family::tile);
      }
}

TEST_CASE("small batches of wide layers stream the weights") {
  for (const char* batch : {"n1", "n2", "n8"})
    for (Face face : {Face::forward, Face::grad_input}) {
      const std::string text = std::string(batch) + " a64>b64 i56x56 k3x3 p1 x:nia y:nob w:oakb";
      CAPTURE(text);
      CHECK(best(text, face) == Family::stream);
    }
}

TEST_CASE("weights with the place innermost, and depthwise layers, go to lanes") {
  for (Face face : faces) {
    for (const char* text :
         {"n100 a16>b16 i28x28 k3x3 w:bako", "n8 a3>b16 i224x224 k3x3 p1 w:bako",
          "n4 a8>b8 i128x256 k3x3 p1 w:bako", "n32 a64>b64 g64 i56x56 k3x3 p1 x:nia y:nob",
          "n32 a64>b64 g64 i56x56 k3x3 p1 w:bako"}) {
      CAPTURE(std::string(text));
      CHECK(best(text, face) == Family::lanes);
    }
  }
}

TEST_CASE("the reference is the last resort") {
  for (const char* shape : shapes)
    for (const char* layout : layouts)
      for (Face face : faces) {
        const std::string text = std::string(shape) + layout;
        const Problem problem = parse_problem(text);
        if (problem.flops() == 0) continue;
        CAPTURE(text);
        CHECK(best(text, face) != Family::reference);
      }
}

TEST_CASE("predicted times are within reason") {
  for (const char* shape : shapes)
    for (const char* layout : layouts)
      for (Face face : faces) {
        const std::string text = std::string(shape) + layout;
        const Problem problem = parse_problem(text);
        CAPTURE(text);
        double before = 0;
        for (DType dtype : {DType::float32, DType::float64, DType::complex128}) {
          const cuda::Prediction prediction = cuda::predict(problem, face, dtype);
          const double time = prediction.of(prediction.best);
          if (problem.layout(result_of(face)).elements() == 0) continue;
          CHECK(time > problem.bytes(dtype) / 4.8e6);  // what the memory of an H200 can move
          CHECK(time > problem.flops(dtype) / 67e6);
          CHECK(time >= before);
          before = time;
        }
      }
}

TEST_CASE("a larger batch takes longer") {
  for (Face face : faces) {
    double before = 0;
    for (int n = 1; n <= 4096; n *= 4) {
      const Problem problem =
          parse_problem("n" + std::to_string(n) + " a64>b64 i14x14 k3x3 p1 x:nia y:nob w:oakb");
      const cuda::Prediction prediction = cuda::predict(problem, face, DType::float32);
      CHECK(prediction.of(prediction.best) >= before);
      before = prediction.of(prediction.best);
    }
  }
}
