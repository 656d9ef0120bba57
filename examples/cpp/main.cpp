// One call of the C++ library: describe the problem, name the pointers, run.
#include <unshared/unshared.hpp>

#include <cstdio>
#include <vector>

int main() {
  const unshared::Problem problem = unshared::parse_problem("n4 a3>b8 i32x32 k4x4 s2");
  const auto elements = [&](unshared::Seat seat) { return problem.layout(seat).elements(); };
  std::vector<float> x(elements(unshared::Seat::x), 1.0f), w(elements(unshared::Seat::w), 0.5f);
  std::vector<float> y(elements(unshared::Seat::y));

  unshared::Call call;  // forward, float32, on the CPU unless said otherwise
  call.first = x.data();
  call.second = w.data();
  call.result = y.data();
  unshared::run(problem, call);

  const auto how = unshared::explain(problem, call.face, call.dtype);
  std::printf("%s: y[0] = %g by kernel '%s' (%s)\n", to_string(problem).c_str(), y[0],
              how.kernel.c_str(), how.level.c_str());
  return y[0] == 24.0f ? 0 : 1;
}
