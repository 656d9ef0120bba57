// What the tensor cores multiply: how each mode reads its operands' fragments from panels in shared
// memory, and what one product of fragments is.
//
// A panel holds `lines` (rows of the left operand, columns of the right one) of a chunk of steps,
// either line by line ("along steps") or step by step. Fragments come through ldmatrix, transposed
// from panels that lie step by step; 32-bit elements have no transposing ldmatrix and are read one
// by one there. Pitches are such that no two lanes of a phase meet in a bank.
#pragma once

#include "device.hpp"

namespace unshared::cuda {

// float16 and bfloat16 as they are: products exact, sums in float32.
template <class T>
struct HalfProduct {
  using Element = T;
  static constexpr int steps = 16;  // of one product of fragments
  static constexpr int promotion = 4;  // so many products until partial sums are promoted
  struct Left {
    std::uint32_t at[4];
  };
  struct Right {
    std::uint32_t at[2];
  };

  template <class Thread>
  static UNSHARED_DEVICE Left left(Thread&, const std::uint32_t (&raw)[4]) {
    return {{raw[0], raw[1], raw[2], raw[3]}};
  }
  template <class Thread>
  static UNSHARED_DEVICE Right right(Thread&, std::uint32_t raw0, std::uint32_t raw1) {
    return {{raw0, raw1}};
  }
  template <class Thread>
  static UNSHARED_DEVICE void multiply(Thread& t, float (&sum)[4], const Left& p, const Right& q) {
    if constexpr (std::is_same_v<T, Half>)
      t.mma_f16(sum, p.at, q.at);
    else
      t.mma_bf16(sum, p.at, q.at);
  }
};

// float32 rounded to TF32 (11 significant bits), to nearest, ties away from zero.
struct Tf32Product {
  using Element = float;
  static constexpr int steps = 8, promotion = 4;
  struct Left {
    std::uint32_t at[4];
  };
  struct Right {
    std::uint32_t at[2];
  };

  template <class Thread>
  static UNSHARED_DEVICE Left left(Thread& t, const std::uint32_t (&raw)[4]) {
    Left p;
    for (int i = 0; i < 4; ++i) p.at[i] = t.round_tf32(raw[i]);
    return p;
  }
  template <class Thread>
  static UNSHARED_DEVICE Right right(Thread& t, std::uint32_t raw0, std::uint32_t raw1) {
    return {{t.round_tf32(raw0), t.round_tf32(raw1)}};
  }
  template <class Thread>
  static UNSHARED_DEVICE void multiply(Thread& t, float (&sum)[4], const Left& p, const Right& q) {
    t.mma_tf32(sum, p.at, q.at);
  }
};

// float32 as the sum of two TF32 numbers; of the four products the smallest is left out. An infinite
// operand gives NaN (its second part is inf - inf).
struct Tf32x3Product {
  using Element = float;
  static constexpr int steps = 8, promotion = 2;
  struct Left {
    std::uint32_t high[4], low[4];
  };
  struct Right {
    std::uint32_t high[2], low[2];
  };

  template <class Thread>
  static UNSHARED_DEVICE Left left(Thread& t, const std::uint32_t (&raw)[4]) {
    Left p;
    for (int i = 0; i < 4; ++i) split(t, raw[i], p.high[i], p.low[i]);
    return p;
  }
  template <class Thread>
  static UNSHARED_DEVICE Right right(Thread& t, std::uint32_t raw0, std::uint32_t raw1) {
    Right q;
    split(t, raw0, q.high[0], q.low[0]);
    split(t, raw1, q.high[1], q.low[1]);
    return q;
  }
  template <class Thread>
  static UNSHARED_DEVICE void multiply(Thread& t, float (&sum)[4], const Left& p, const Right& q) {
    t.mma_tf32(sum, p.low, q.high);  // small terms first
    t.mma_tf32(sum, p.high, q.low);
    t.mma_tf32(sum, p.high, q.high);
  }

 private:
  template <class Thread>
  static UNSHARED_DEVICE void split(Thread& t, std::uint32_t raw, std::uint32_t& high,
                                    std::uint32_t& low) {
    high = t.round_tf32(raw);
    low = t.round_tf32(
        std::bit_cast<std::uint32_t>(std::bit_cast<float>(raw) - std::bit_cast<float>(high)));
  }
};

// The shape of a panel in shared memory.
template <class Element, int lines, int steps>
struct Panel {
  static constexpr int size = sizeof(Element);
  static constexpr int odd(int bytes, int unit) { return (bytes / unit | 1) * unit; }
  static constexpr int along_pitch = odd(steps * size, 16);
  static constexpr int across_pitch = odd(lines * size, 8 * size);
  static constexpr int bytes =
      lines * along_pitch > steps* across_pitch ? lines * along_pitch : steps * across_pitch;
};

// A lane's way into a panel: where it reads for the first 8 or 16 lines and the first product, and
// how many bytes further for the next ones.
struct Reader {
  const std::byte* at;
  int next_lines, next_steps;  // 8 lines; the steps of one product
  bool along_steps;
};

// `lines_first`: whether the matrices of one ldmatrix run over lines, then steps (a left operand),
// or the other way round.
template <class Shape, class Product>
UNSHARED_DEVICE Reader reader_of(const std::byte* panel, bool along_steps, int lane, int line,
                                 bool lines_first) {
  const int row = lane % 8, first = lane / 8 % 2, second = lane / 16;
  const int line_half = lines_first ? first : second, step_half = lines_first ? second : first;
  Reader reader{panel, 8 * Shape::along_pitch, Product::steps * Shape::size, along_steps};
  if (along_steps) {
    reader.at += (line + 8 * line_half + row) * Shape::along_pitch + 16 * step_half;
    return reader;
  }
  reader.next_lines = 8 * Shape::size;
  reader.next_steps = Product::steps * Shape::across_pitch;
  if (Shape::size == 2)
    reader.at += (8 * step_half + row) * Shape::across_pitch + (line + 8 * line_half) * Shape::size;
  else  // one element at a time: that of this lane in the fragment
    reader.at += lane % 4 * Shape::across_pitch + (line + lane / 4) * Shape::size;
  return reader;
}

// Two or four 8 x 16-byte matrices of a panel.
template <class Shape, int count, class Thread>
UNSHARED_DEVICE void read(Thread& t, const Reader& reader, int offset, bool lines_first,
                          std::uint32_t (&raw)[count]) {
  const std::byte* at = reader.at + offset;
  if (reader.along_steps) {
    t.template load_matrices<false>(at, raw);
  } else if constexpr (Shape::size == 2) {
    t.template load_matrices<true>(at, raw);
  } else {
    for (int i = 0; i < count; ++i) {
      const int lines = lines_first ? i % 2 : i / 2, steps = lines_first ? i / 2 : i % 2;
      raw[i] = t.load_shared(reinterpret_cast<const std::uint32_t*>(
          at + steps * 4 * Shape::across_pitch + lines * 8 * Shape::size));
    }
  }
}

}  // namespace unshared::cuda
