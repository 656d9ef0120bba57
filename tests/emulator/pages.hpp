// Memory of any size: zero, and only what is written is really there.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>

namespace unshared::emulator {

class Pages {
 public:
  explicit Pages(std::size_t bytes, int access = PROT_READ | PROT_WRITE) : bytes_(bytes) {
    void* memory = mmap(nullptr, bytes, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<std::byte*>(memory);
  }
  ~Pages() { munmap(data_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  std::byte* data() const { return data_; }

 private:
  std::size_t bytes_;
  std::byte* data_;
};

}  // namespace unshared::emulator
