// The kernels of one instruction set for the narrow types (float32 and what is summed in it) or the
// wide ones (of eight bytes and more). This file is compiled for each level and width (CMakeLists.txt),
// everything in it has internal linkage but fill_LEVEL_WIDTH(), and no shared inline function is left
// behind (tests/check_objects.py).
#include "along.hpp"
#include "gather.hpp"
#include "grad_weight.hpp"
#include "patch.hpp"
#include "peak.hpp"
#include "scatter.hpp"
#include "weigh.hpp"

#define UNSHARED_JOIN(level, width) fill_##level##_##width
#define UNSHARED_FILL(level, width) UNSHARED_JOIN(level, width)

namespace unshared {
namespace {

// ---- the strided reference ----

template <class T, Face face>
struct Reference {
  const Problem& problem;
  reference::Operands<T> operands;

  static void body(const void* context, Work& work) noexcept {
    const Reference& r = *static_cast<const Reference*>(context);
    while (work.next())
      for (int64_t e = work.begin; e < work.end; ++e) {
        if constexpr (face == Face::forward) reference::forward(r.problem, r.operands, e);
        if constexpr (face == Face::grad_input) reference::grad_input(r.problem, r.operands, e);
        if constexpr (face == Face::grad_weight) reference::grad_weight(r.problem, r.operands, e);
      }
  }

  static void run(const Problem& p, const Call& call) noexcept {
    const Reference r{p,
                      {static_cast<const T*>(call.first), static_cast<const T*>(call.second),
                       static_cast<T*>(call.result), call.accumulate, call.conjugate_first,
                       call.conjugate_second}};
    int64_t elements = 1;  // of the result
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& axis = p.axes[s];
      elements *= face == Face::grad_input ? axis.input : axis.output;
      if (face == Face::grad_weight) elements *= axis.kernel;
    }
    elements *= face == Face::forward      ? p.batch * p.out_channels
                : face == Face::grad_input ? p.batch * p.in_channels
                                           : p.in_channels * p.out_channels;
    parallel(elements, 256, call.threads, body, &r);
  }
};

constexpr const char* accepts(const Problem&) noexcept { return nullptr; }

// ---- the tiles ----

#if defined(UNSHARED_LANES)

template <class T>
void run_tiles(const Problem& p, const Call& call) noexcept {
  // Few cells (say, one place): share out their columns too.
  const int64_t cells = Cell::count(p, Face::grad_weight);
  const int64_t columns = lanes_over_input<T>(p) ? p.in_channels : p.out_channels;
  const int64_t parts =
      greater(lesser(ceil_div(int64_t{64}, cells), ceil_div(columns, Tiler<T>::wide)), 1);
  Walk<GradWeightTiles<T>>{p, call, parts}.run();
}

// A call cut into items by a plan that is made once. Worker is made once per thread, on its own stack.
template <class Worker, class Plan>
struct Planned {
  const Problem& p;
  const Call& call;
  const Plan& plan;

  static void body(const void* context, Work& work) noexcept {
    const Planned& t = *static_cast<const Planned*>(context);
    Worker worker(t.p, t.call, t.plan);
    while (work.next()) worker.run(work.begin, work.end);
  }
  UNSHARED_INLINE void run(int64_t items) const { share(p, call, items, body, this); }
};

// ---- strips of cells ----

template <class T, Face face>
void run_gather(const Problem& p, const Call& call) noexcept {
  if constexpr (face != Face::grad_weight) {
    const GatherPlan<T, face> plan(p, call);
    Planned<Gather<T, face>, GatherPlan<T, face>>{p, call, plan}.run(plan.items);
  }
}

// ---- grad_input by places ----

template <class T>
void run_scatter(const Problem& p, const Call& call) noexcept {
  if constexpr (has_lanes<T>) {
    const ScatterPlan<T> plan(p, call);
    Planned<Scatter<T>, ScatterPlan<T>>{p, call, plan}.run(plan.items);
  }
}

// ---- weight gradients of staged places ----

template <class T>
void run_weigh(const Problem& p, const Call& call) noexcept {
  if constexpr (has_lanes<T>) {
    // Some samples after the others: chains go on from what stands in dw.
    Problem some = WeighPlan<T>::some_samples(p);
    const int64_t most = some.batch;
    Call now = call;
    for (int64_t n = 0; n < p.batch; n += most) {
      some.batch = lesser(most, p.batch - n);
      now.first = static_cast<const T*>(call.first) + n * p.x_batch_stride;
      now.second = static_cast<const T*>(call.second) + n * p.y_batch_stride;
      now.accumulate = call.accumulate || n > 0;
      const WeighPlan<T> plan(some);
      Planned<Weigh<T>, WeighPlan<T>>{some, now, plan}.run(WeighPlan<T>::items(some, plan, now));
    }
  }
}

// ---- weight gradients of patches ----

template <class T>
void run_patch(const Problem& p, const Call& call) noexcept {
  if constexpr (has_lanes<T>) {
    // A patch has no way to leave out padding, where sums that are there must stay.
    if (call.accumulate && any_tap_in_padding(p)) {
      if (weigh_declines<T>(p) == nullptr) return run_weigh<T>(p, call);
      return run_tiles<T>(p, call);
    }
    const PatchPlan<T> plan(p);
    Planned<Patch<T>, PatchPlan<T>>{p, call, plan}.run(plan.items);
  }
}

// ---- lanes along an axis ----

template <class T, Face face>
void run_along(const Problem& p, const Call& call) noexcept {
  if constexpr (has_lanes<T>) {
    using Plan = AlongPlan<T, face>;
    const Plan plan(p);
    if constexpr (Scalar<T>::parts == 1)
      if (plan.rows_axis >= 0)
        return Planned<AlongPlanes<T, face>, Plan>{p, call, plan}.run(plan.blocks());
    Planned<Along<T, face>, Plan>{p, call, plan}.run(plan.blocks());
  }
}

#else

constexpr const char* no_lanes(const Problem&) noexcept {
  return "this level has no fused multiply-add instruction, and a tile must not call a library for "
         "each";
}

#endif

template <class T, Face face>
void fill(Kernel (&list)[kernels_per_list]) {
  // The first that accepts runs. Which index the lanes run over decides how full they are:
  //   scatter    grad_input where a place's weights are whole lines and a pixel's are not: lanes over
  //              samples, over channels, or over channels and taps
  //   patch      grad_weight of weights whose taps lie side by side and few samples: lanes over taps
  //   along      few channels: lanes over places or groups, whose weights differ from lane to lane
  //   gather     forward and grad_input: lanes over the result's channels, or over samples
  //   weigh      grad_weight: lanes over channels of either side, x and dy staged
  //   tiles      grad_weight where that does not fit, and of complex128
  //   reference  any level, even without fused multiply-add
  int at = 0;
#if defined(UNSHARED_LANES)
  if constexpr (face == Face::grad_input)
    list[at++] = {"scatter", scatter_declines<T>, run_scatter<T>, Precision::ieee, scatter_able<T>};
  if constexpr (face == Face::grad_weight)
    list[at++] = {"patch", patch_declines<T>, run_patch<T>, Precision::ieee, patch_able<T>};
  list[at++] = {"along", along_declines<T, face>, run_along<T, face>};
  if constexpr (face == Face::grad_weight) {
    list[at++] = {"weigh", weigh_declines<T>, run_weigh<T>};
    list[at++] = {"tiles", accepts, run_tiles<T>};
  } else {
    list[at++] = {"gather", accepts, run_gather<T, face>};
  }
#else
  list[at++] = {face == Face::grad_weight ? "tiles" : "gather", no_lanes, Reference<T, face>::run};
#endif
  list[at++] = {"reference", accepts, Reference<T, face>::run};
}

// UNSHARED_WIDTH is the name of one of these.
constexpr bool narrow(std::size_t size) { return size <= sizeof(float); }
constexpr bool wide(std::size_t size) { return !narrow(size); }

}  // namespace

void UNSHARED_FILL(UNSHARED_ISA, UNSHARED_WIDTH)(KernelTable& table) noexcept {
  table.read = read_floats;
  for (int d = 0; d < dtype_count; ++d)
    visit(static_cast<DType>(d), [&](auto type) {
      using T = typename decltype(type)::type;
      if constexpr (UNSHARED_WIDTH(sizeof(T))) {
        fill<T, Face::forward>(table.list[d][0]);
        fill<T, Face::grad_input>(table.list[d][1]);
        fill<T, Face::grad_weight>(table.list[d][2]);
        table.multiply_add[d] = multiply_add_rounds<typename Scalar<T>::Real>;
      }
    });
}

}  // namespace unshared
