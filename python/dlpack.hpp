// The DLPack binary interface, as far as it is read here: plain C structs whose layout the protocol fixes, stated
// anew so that the build needs no foreign header. The assertions pin every offset (of 64-bit machines).
#pragma once

#include <cstddef>
#include <cstdint>

namespace unshared::python::dlpack {

inline constexpr std::uint32_t major_version = 1;

enum DeviceType : std::int32_t { cpu = 1, cuda = 2, cuda_pinned = 3, cuda_managed = 13 };
enum TypeCode : std::uint8_t { real = 2, bfloat = 4, complex = 5 };
enum Flag : std::uint64_t { read_only = 1, copied = 2 };

// The `stream` of __dlpack__, on CUDA: that which shall wait until the data are there. These have
// numbers of their own, any other is its address; 0 is not allowed.
enum Stream : std::int64_t { no_stream = -1, legacy_stream = 1 };

struct Version {
  std::uint32_t major, minor;
};

struct Tensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  const std::int64_t* shape;
  const std::int64_t* strides;  // in elements; null before version 1.2: row-major without gaps
  std::uint64_t byte_offset;
};

// What a capsule named "dltensor" holds.
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

// What a capsule named "dltensor_versioned" holds. Of a later major version only the first three may be touched.
struct ManagedVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

// What the attribute __dlpack_c_exchange_api__ of an array type holds, in a capsule "dlpack_exchange_api".
struct ExchangeApi {
  Version version;
  const void* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(
      void* object, Tensor* borrowed);  // may be null; sets a Python error and returns non-zero
  int (*current_work_stream)(std::int32_t device_type, std::int32_t device_id, void** stream);
};

static_assert(sizeof(void*) == 8);
static_assert(offsetof(Tensor, device_type) == 8 && offsetof(Tensor, device_id) == 12 &&
              offsetof(Tensor, ndim) == 16);
static_assert(offsetof(Tensor, code) == 20 && offsetof(Tensor, bits) == 21 &&
              offsetof(Tensor, lanes) == 22);
static_assert(offsetof(Tensor, shape) == 24 && offsetof(Tensor, strides) == 32 &&
              offsetof(Tensor, byte_offset) == 40);
static_assert(sizeof(Tensor) == 48 && offsetof(Managed, context) == 48 &&
              offsetof(Managed, deleter) == 56);
static_assert(offsetof(ManagedVersioned, context) == 8 &&
              offsetof(ManagedVersioned, deleter) == 16);
static_assert(offsetof(ManagedVersioned, flags) == 24 && offsetof(ManagedVersioned, tensor) == 32);
static_assert(offsetof(ExchangeApi, previous) == 8 && offsetof(ExchangeApi, allocate) == 16);
static_assert(offsetof(ExchangeApi, tensor_from_object) == 40 &&
              offsetof(ExchangeApi, current_work_stream) == 48);

}  // namespace unshared::python::dlpack
