// The CUDA backend as the dispatcher sees it: what this machine offers, the table, and one launch
// with its device guard and its errors.
#include <cuda_runtime.h>
#include <pthread.h>

#include <string>

#include "../cpp/kernels.hpp"

namespace unshared {
namespace cuda {

void fill_forward(KernelTable&);
void fill_grad_input(KernelTable&);
void fill_grad_weight(KernelTable&);

namespace {

// CUDA does not survive a fork: a child of a process that used it must not touch it.
bool forked = false;

CudaState find_state() noexcept {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) cudaGetLastError();  // ours: leave no trace
  if (error == cudaErrorNoDevice || (error == cudaSuccess && devices == 0))
    return {false, "this machine has no CUDA device"};
  if (error != cudaSuccess) return {false, cudaGetErrorString(error)};
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  return {true, ""};
}

// Makes the call's device current and puts the caller's back.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) noexcept {
    if (device < 0) return;
    status_ = cudaGetDevice(&before_);
    if (status_ == cudaSuccess && before_ != device) {
      status_ = cudaSetDevice(device);
      changed_ = status_ == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  cudaError_t status() const { return status_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t status_ = cudaSuccess;
};

// Errors of a launch that say something of the launch itself; any other is that of earlier work.
bool ours(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorInvalidPtx:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorMemoryAllocation:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorUnsupportedPtxVersion: return true;
    default: return false;
  }
}

[[noreturn]] void fail(const Call& call, const char* expected, cudaError_t error) {
  throw Error(Error::Kind::device, name_of(call.face), "stream", expected,
              std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error));
}

// Whether the current device has what the kernel needs.
void check_architecture(const Kernel& kernel, const Call& call) {
  if (kernel.architecture == 0) return;
  int device = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) fail(call, "a device that can be used", error);
  const auto text = [](int architecture) {
    return std::to_string(architecture / 10) + "." + std::to_string(architecture % 10);
  };
  if (10 * major + minor < kernel.architecture)
    throw Error(Error::Kind::unsupported, name_of(call.face), "precision",
                "'ieee', or a GPU of compute capability " + text(kernel.architecture) + " or more",
                "a GPU of compute capability " + text(10 * major + minor));
}

}  // namespace
}  // namespace cuda

bool cuda_built() noexcept { return true; }

CudaState cuda_state() noexcept {
  static const CudaState state = cuda::find_state();
  if (cuda::forked && state.available)
    return {false, "CUDA does not work in a forked child of a process that used it"};
  return state;
}

const KernelTable& cuda_table() noexcept {
  static const KernelTable table = [] {
    KernelTable t{"cuda", {}, {}};
    cuda::fill_forward(t);
    cuda::fill_grad_input(t);
    cuda::fill_grad_weight(t);
    return t;
  }();
  return table;
}

void cuda_run(const Kernel& kernel, const Problem& problem, const Call& call) {
  const cuda::DeviceGuard guard(call.device);
  if (guard.status() != cudaSuccess) {
    cudaGetLastError();  // ours: the next call shall not take it for an earlier one's
    cuda::fail(call, "a device that can be used", guard.status());
  }
  constexpr const char* earlier =
      "a device without errors (an earlier operation failed, of whatever library)";
  if (const cudaError_t before = cudaGetLastError(); before != cudaSuccess)
    cuda::fail(call, earlier, before);
  cuda::check_architecture(kernel, call);
  kernel.run(problem, call);
  if (const cudaError_t after = cudaGetLastError(); after != cudaSuccess)
    cuda::fail(call, cuda::ours(after) ? "the kernel to be launched" : earlier, after);
}

}  // namespace unshared
