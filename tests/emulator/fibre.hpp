// Fibres: functions that can be left in the middle and resumed there, each with a stack of its own.
// A switch is a dozen instructions and no system call; AddressSanitizer is told of it.
#pragma once

#include <cstddef>
#include <memory>

namespace unshared::emulator {

class Fibre {
 public:
  // Once resumed, calls life(*this), which must not return: whoever has nothing to do leaves.
  explicit Fibre(void (*life)(Fibre&));
  ~Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  void resume();  // from outside: runs until the fibre leaves
  void leave();  // from within

 private:
  struct Context;
  static void begin();

  std::unique_ptr<Context> context_;
  void (*life_)(Fibre&);
};

}  // namespace unshared::emulator
