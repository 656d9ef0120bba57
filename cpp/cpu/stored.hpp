// Elements as they are stored, as lanes of the type that sums are kept in: half types are widened when
// they are loaded and rounded when they are stored.
#pragma once

#include "lanes.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Elements of storage type T as lanes of the type sums are kept in, and back.
template <class T>
struct Stored {
  using Real = T;
  using L = Lanes<T>;
  using Vector = typename L::Vector;
  static UNSHARED_INLINE Vector load(const T* p) { return L::load(p); }
  static UNSHARED_INLINE Vector load_part(const T* p, int n) { return L::load_part(p, n); }
  static UNSHARED_INLINE void store(T* p, Vector v) { L::store(p, v); }
  static UNSHARED_INLINE void store_around(T* p, Vector v) { L::store_around(p, v); }
  static UNSHARED_INLINE void store_part(T* p, Vector v, int n) { L::store_part(p, v, n); }

  // Vectors of elements next to each other at lane(i), for each lane i: of some pieces, or of the first n
  // elements of one.
  static constexpr int piece = 16 / sizeof(T);
  template <int pieces>
  static UNSHARED_INLINE void turn(Vector (&v)[pieces * piece], const auto& lane) {
    L::template turn<pieces>(v, [&](int i, int g) __attribute__((always_inline)) {
      return L::load_piece(lane(i) + g * piece);
    });
  }
  static UNSHARED_INLINE void turn_part(Vector (&v)[piece], const auto& lane, int n) {
    L::template turn<1>(v, [&](int i, int) __attribute__((always_inline)) {
      return L::load_piece_part(lane(i), n);
    });
  }
};

// Half types: widened exactly, rounded once to nearest even, as scalar.hpp states it.
template <class T>
struct StoredHalf {
  using Real = float;
  using L = FloatLanes;
  using Vector = L::Vector;
  static UNSHARED_INLINE Vector load(const T* p) {
#if defined(__AVX512F__)
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    return load_part(p, L::count);
#endif
  }
  static UNSHARED_INLINE Vector load_part(const T* p, int n) {
#if defined(__AVX512F__)
    return widened(_mm256_maskz_loadu_epi16(L::span(0, n), p));
#elif defined(__AVX2__)
    if (n == L::count) return load(p);
    return widened(load_some(p, n));
#else
    float all[L::count] = {};
    for (int i = 0; i < n; ++i) all[i] = widen(p[i]);
    return L::load(all);
#endif
  }
  static UNSHARED_INLINE void store(T* p, Vector v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded(v));
#elif defined(__AVX2__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), rounded(v));
#else
    store_part(p, v, L::count);
#endif
  }
  static UNSHARED_INLINE void store_around(T* p, Vector v) {
#if defined(__AVX512F__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), rounded(v));
#elif defined(__AVX2__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), rounded(v));
#else
    store(p, v);
#endif
  }
  static UNSHARED_INLINE void store_part(T* p, Vector v, int n) {
#if defined(__AVX512F__)
    _mm256_mask_storeu_epi16(p, L::span(0, n), rounded(v));
#elif defined(__AVX2__)
    if (n == L::count) return store(p, v);
    __m128i rest = rounded(v);
    if ((n & 4) != 0) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p), rest);
      rest = _mm_unpackhi_epi64(rest, rest);
      p += 4;
    }
    if ((n & 2) != 0) {
      const int two = _mm_cvtsi128_si32(rest);
      __builtin_memcpy(p, &two, sizeof two);
      rest = _mm_srli_si128(rest, 4);
      p += 2;
    }
    if ((n & 1) != 0) p->bits = static_cast<std::uint16_t>(_mm_extract_epi16(rest, 0));
#else
    float all[L::count];
    L::store(all, v);
    for (int i = 0; i < n; ++i) p[i] = round_to<T>(all[i]);
#endif
  }

  // As of whole types, two elements at a time, which are told apart when they are across the lanes.
  static constexpr int piece = 8;
  template <int pieces>
  static UNSHARED_INLINE void turn(Vector (&v)[pieces * piece], const auto& lane) {
    Vector pairs[4 * pieces];
    L::template turn<pieces>(pairs, [&](int i, int g) __attribute__((always_inline)) {
      return L::load_piece(lane(i) + g * piece);
    });
    tell_apart(v, pairs);
  }
  static UNSHARED_INLINE void turn_part(Vector (&v)[piece], const auto& lane, int n) {
    Vector pairs[4];
    L::template turn<1>(pairs, [&](int i, int) __attribute__((always_inline)) {
#if defined(__AVX512F__)
      return _mm_castsi128_ps(_mm_maskz_loadu_epi16(static_cast<__mmask8>((1u << n) - 1), lane(i)));
#elif defined(__AVX2__)
      return _mm_castsi128_ps(load_some(lane(i), n));
#else
      alignas(16) T some[piece] = {};
      for (int j = 0; j < n; ++j) some[j] = lane(i)[j];
      return L::load_piece(some);
#endif
    });
    tell_apart(v, pairs);
  }

 private:
  static constexpr bool is_half = __is_same(T, Half);
  template <int n>
  static UNSHARED_INLINE void tell_apart(Vector (&v)[2 * n], const Vector (&pairs)[n]) {
#pragma GCC unroll 16
    for (int j = 0; j < n; ++j) {
      v[2 * j] = widened_of_pairs<0>(pairs[j]);
      v[2 * j + 1] = widened_of_pairs<1>(pairs[j]);
    }
  }
  // The first or second of two elements in each lane.
  template <int which>
  static UNSHARED_INLINE Vector widened_of_pairs(Vector pairs) {
#if defined(__AVX512F__)
    const __m512i bits = _mm512_castps_si512(pairs);
    if constexpr (is_half)
      return widened(_mm512_maskz_cvtepi32_epi16(0xffff, which == 1 ? shifted(bits) : bits));
    else if constexpr (which == 1)
      return _mm512_castsi512_ps(
          _mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
    else
      return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, bits, 16));
#elif defined(__AVX2__)
    const __m256i bits = _mm256_castps_si256(pairs);
    if constexpr (is_half) {
      const __m256i one = which == 1 ? _mm256_srli_epi32(bits, 16)
                                     : _mm256_and_si256(bits, _mm256_set1_epi32(0xffff));
      return widened(
          _mm_packus_epi32(_mm256_castsi256_si128(one), _mm256_extracti128_si256(one, 1)));
    } else if constexpr (which == 1) {
      return _mm256_castsi256_ps(
          _mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
    } else {
      return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
    }
#else
    T all[2 * L::count];
    __builtin_memcpy(all, &pairs, sizeof all);
    float one[L::count];
    for (int i = 0; i < L::count; ++i) one[i] = widen(all[2 * i + which]);
    return L::load(one);
#endif
  }
#if defined(__AVX512F__)
  static UNSHARED_INLINE __m256i rounded(Vector v) {
    if constexpr (is_half)
      return _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512i bits = _mm512_castps_si512(v), high = shifted(bits);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i sum =
        shifted(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))));
    const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_maskz_cvtepi32_epi16(0xffff, _mm512_mask_blend_epi32(nan, sum, quiet));
  }
  static UNSHARED_INLINE __m512i shifted(__m512i bits) {
    return _mm512_maskz_srli_epi32(0xffff, bits, 16);
  }
  static UNSHARED_INLINE Vector widened(__m256i bits) {
    if constexpr (is_half) return _mm512_maskz_cvtph_ps(0xffff, bits);
    return _mm512_castsi512_ps(
        _mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, bits), 16));
  }
#elif defined(__AVX2__)
  // The first n elements, fewer than 8, of a piece: piece by piece, the last ones first.
  static UNSHARED_INLINE __m128i load_some(const T* p, int n) {
    __m128i bits = _mm_setzero_si128();
    if ((n & 1) != 0) bits = _mm_cvtsi32_si128(p[n - 1].bits);
    if ((n & 2) != 0) {
      int two;
      __builtin_memcpy(&two, p + (n & 4), sizeof two);
      bits = _mm_or_si128(_mm_slli_si128(bits, 4), _mm_cvtsi32_si128(two));
    }
    if ((n & 4) != 0)
      bits = _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), bits);
    return bits;
  }
  static UNSHARED_INLINE __m128i rounded(Vector v) {
    if constexpr (is_half) return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256i bits = _mm256_castps_si256(v), high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i sum = _mm256_srli_epi32(
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i all = _mm256_blendv_epi8(sum, quiet, nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  }
  static UNSHARED_INLINE Vector widened(__m128i bits) {
    if constexpr (is_half) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
#endif
};
template <>
struct Stored<Half> : StoredHalf<Half> {};
template <>
struct Stored<BFloat16> : StoredHalf<BFloat16> {};

// The sums of a tile, kept as T: loaded, or stored, if wanted around the caches; then rows of c must
// be aligned. Of each row's last vector only `last` lanes are c's.
template <class L, class T, int M, int V>
UNSHARED_INLINE void load_tile(typename L::Vector (&sum)[M][V], const T* c, std::int64_t c_row,
                               int last) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const T* const at = c + m * c_row + v * L::count;
      sum[m][v] =
          v == V - 1 && last != L::count ? Stored<T>::load_part(at, last) : Stored<T>::load(at);
    }
}
template <class L, class T, int M, int V>
UNSHARED_INLINE void store_tile(const typename L::Vector (&sum)[M][V], T* c, std::int64_t c_row,
                                int last, bool around = false) {
  const auto rows = [&](auto store_last, auto store) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        T* const at = c + m * c_row + v * L::count;
        if (v == V - 1)
          store_last(at, sum[m][v]);
        else
          store(at, sum[m][v]);
      }
  };
  const auto whole = [](T* at, typename L::Vector v)
                         __attribute__((always_inline)) { Stored<T>::store(at, v); };
  const auto past = [](T* at, typename L::Vector v)
                        __attribute__((always_inline)) { Stored<T>::store_around(at, v); };
  if (around)
    rows(past, past);
  else if (last == L::count)
    rows(whole, whole);
  else
    rows([&](T* at, typename L::Vector v)
             __attribute__((always_inline)) { Stored<T>::store_part(at, v, last); },
         whole);
}
}  // namespace
}  // namespace unshared

#endif
