// Kernels "tile" and "stream" (tile.hpp) as the table has them: the choice of a shape and the launch.
#pragma once

#include "choice.hpp"
#include "statement.hpp"
#include "tile.hpp"

namespace unshared::cuda {

template <class Device, class T, TileKind kind>
void run_shape(const Product& product, const Call& call) noexcept {
  using S = Shape<T, kind>;
  using K = TileKernel<T, S>;
  K kernel{};
  kernel.product = product;
  kernel.operands = operands_of<T>(call);
  kernel.row_tiles = ceil_div(product.rows, S::rows);
  kernel.column_tiles = ceil_div(product.columns, S::columns);
  kernel.items = product.cells * kernel.row_tiles * kernel.column_tiles;
  kernel.first = staging_of_first(product, call.first, K::size);
  kernel.second = staging_of_second(product, call.second, K::size);
  bool cells_aligned = true;
  for (int s = 0; s < product.axis_count; ++s)
    cells_aligned = cells_aligned && product.axes[s].result_cell % K::pack == 0;
  kernel.pack_columns = cells_aligned && columns_together(product, &ColumnLoop::result, K::pack) &&
                        aligned(call.result, K::size, K::pack, {product.row_result});
  kernel.pack_rows =
      cells_aligned && product.row_result == 1 && aligned(call.result, K::size, K::pack, {});
  for (int d = 0; d < product.column_depth; ++d)
    kernel.pack_rows = kernel.pack_rows && product.column[d].result % K::pack == 0;
  // Enough blocks to fill the device a few times over, and few enough that most compute several
  // cells, whose tables of steps are the same.
  constexpr int64_t blocks = Device::processors * S::blocks_per_processor * 4;
  Device::launch(kernel, lesser(kernel.items, blocks), K::shared_bytes, call);
}

// What the tables count in 32 bits.
template <Face face>
bool tile_able(const Problem& problem) noexcept {
  if (problem.layout(result_of(face)).elements() == 0) return false;
  const Product p = product_of(problem, face);
  return p.most_steps <= max_extent && p.columns <= max_extent;
}

template <class Device, class T, Face face, Family family>
void run_tile(const Problem& problem, const Call& call) noexcept {
  const Prediction prediction = predict(problem, face, dtype_of<T>);
  const Product product = product_of(problem, face);
  if constexpr (family == Family::stream) {
    if (prediction.stream == TileKind::stream8)
      run_shape<Device, T, TileKind::stream8>(product, call);
    else
      run_shape<Device, T, TileKind::stream16>(product, call);
  } else {
    if (prediction.tile == TileKind::wide)
      run_shape<Device, T, TileKind::wide>(product, call);
    else if (prediction.tile == TileKind::flat)
      run_shape<Device, T, TileKind::flat>(product, call);
    else
      run_shape<Device, T, TileKind::small>(product, call);
  }
}

}  // namespace unshared::cuda
