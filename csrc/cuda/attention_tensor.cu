// Paged attention on tensor cores (mma.m16n8k16): a block of four warps takes a task in chunks of 64 tokens, which asynchronous copies bring to shared
// memory some chunks ahead. Up to 16 query vectors (decoding): each warp takes a quarter of a chunk, and their sums are put together at the end.
// More (prompts): each warp takes 16 vectors over the whole chunk.
#include "attention_common.cuh"

namespace hetserve::cuda {
namespace {

constexpr int kBlockThreads = kAttentionWarps * kWarp;
constexpr int kTile = 16;                               // query vectors, and tokens, of one product
constexpr int kChunk = kAttentionWarps * kTile;         // tokens
static_assert(kChunk == kDeviceChunkTokens && kTile == kDeviceDeepVectors && kChunk == kDeviceTileVectors);

// Rows in shared memory are 16 bytes longer than they need be: eight of them then begin in eight different sets of banks.
template <int dim>
constexpr int kRow = dim + 8;

template <int dim>
constexpr int64_t shared_bytes(int stages) {
  return (stages * 2 + 1) * int64_t{kChunk} * kRow<dim> * 2;
}

// A warp's 16 vectors: in a lane, of rows lane / 4 and lane / 4 + 8, columns lane % 4 * 2 and the next of each 8.
template <int dim>
struct Tile {
  uint32_t q[dim / 16][4];
  float sums[dim / 8][4];
  float max[2];
  float total[2];  // of this lane's columns
  Seen seen[2];
};

template <class T, int dim>
struct Buffers {
  T* stages;  // [stages][2][kChunk][kRow]
  T* queries;  // [kChunk][kRow]

  __device__ T* keys(int stage) const { return stages + int64_t{stage} * 2 * kChunk * kRow<dim>; }
  __device__ T* values(int stage) const { return keys(stage) + kChunk * kRow<dim>; }
};

// Starts the copies of tokens [token, token + kChunk); those from `end` on are zeros.
template <class T, int dim>
__device__ void fetch(const AttentionParams& p, const int32_t* page_ids, int page_shift, int token, int end, T* keys, T* values) {
  constexpr int kPieces = dim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kChunk * kPieces; i += kBlockThreads) {
    const int row = i / kPieces, piece = i % kPieces, at = token + row;
    const bool valid = at < end;
    const int64_t page = valid ? page_ids[at >> page_shift] : 0, offset = (at & ((1 << page_shift) - 1)) * dim + piece * 8;
    copy_async(keys + row * kRow<dim> + piece * 8, reinterpret_cast<const T*>(k_page(p.pages, p.layer, page)) + offset, valid);
    copy_async(values + row * kRow<dim> + piece * 8, reinterpret_cast<const T*>(v_page(p.pages, p.layer, page)) + offset, valid);
  }
}

template <class T, int dim>
__device__ void load_queries(const AttentionParams& p, const AttentionTask& task, int head_group, int vectors, T* queries) {
  constexpr int kPieces = dim / 8;
  const int rows = vectors <= kTile ? kTile : kChunk;
  for (int i = static_cast<int>(threadIdx.x); i < rows * kPieces; i += kBlockThreads) {
    const int v = i / kPieces, piece = i % kPieces;
    Vec<T> x{};
    if (v < vectors) x = load_vec(query<T>(p, task, head_group, v) + piece * 8);
    store_vec(queries + v * kRow<dim> + piece * 8, x);
  }
}

// The 16 tokens from `token` on, which lie in 16 rows of keys and values.
template <class T, int dim>
__device__ void attend(Tile<dim>& tile, const T* keys, const T* values, int token, float scale) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, matrix = lane / 8, row = lane % 8;
  float scores[2][4] = {};  // of tokens 0 to 7 and 8 to 15
#pragma unroll
  for (int k = 0; k < dim / 16; ++k) {
    uint32_t b[4];  // tokens 0 to 7, dims 0 to 7 and 8 to 15; then tokens 8 to 15
    load_matrices(b, keys + (matrix / 2 * 8 + row) * kRow<dim> + k * 16 + matrix % 2 * 8);
    multiply(scores[0], tile.q[k], b[0], b[1], T{});
    multiply(scores[1], tile.q[k], b[2], b[3], T{});
  }
  uint32_t weights[4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // of the vectors
    float x[4], most = -INFINITY;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = token + i / 2 * 8 + lane % 4 * 2 + i % 2;
      const bool visible = at >= tile.seen[half].begin && at < tile.seen[half].end;
      x[i] = visible ? scores[i / 2][2 * half + i % 2] * scale : -INFINITY;
      most = fmaxf(most, x[i]);
    }
    most = fmaxf(most, from_other(most, 1));
    most = fmaxf(most, from_other(most, 2));
    most = fmaxf(most, tile.max[half]);
    const float base = most == -INFINITY ? 0.0f : most;  // nothing seen yet: every power below is that of -inf
    const float keep = power_of_two(tile.max[half] - base);
    tile.max[half] = most;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = power_of_two(x[i] - base);
      sum += x[i];
    }
    tile.total[half] = tile.total[half] * keep + sum;
#pragma unroll
    for (int n = 0; n < dim / 8; ++n) {
      tile.sums[n][2 * half] *= keep;
      tile.sums[n][2 * half + 1] *= keep;
    }
    weights[half] = pair_of(x[0], x[1], T{});
    weights[2 + half] = pair_of(x[2], x[3], T{});
  }
#pragma unroll
  for (int n = 0; n < dim / 16; ++n) {
    uint32_t b[4];  // dims 0 to 7, tokens 0 to 7 and 8 to 15; then dims 8 to 15
    load_matrices_transposed(b, values + (matrix % 2 * 8 + row) * kRow<dim> + n * 16 + matrix / 2 * 8);
    multiply(tile.sums[2 * n], weights, b[0], b[1], T{});
    multiply(tile.sums[2 * n + 1], weights, b[2], b[3], T{});
  }
}

// Makes the tile of vectors [first, first + 16) ready; those from `vectors` on see nothing.
template <class T, int dim>
__device__ void start(Tile<dim>& tile, const AttentionParams& p, const AttentionTask& task, int first, int vectors, const T* queries) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, matrix = lane / 8, row = lane % 8, group = static_cast<int>(p.group);
#pragma unroll
  for (int k = 0; k < dim / 16; ++k) {  // rows 0 to 7 and 8 to 15 of dims 0 to 7; then of dims 8 to 15
    load_matrices(tile.q[k], queries + (first + matrix % 2 * 8 + row) * kRow<dim> + k * 16 + matrix / 2 * 8);
  }
#pragma unroll
  for (int n = 0; n < dim / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) tile.sums[n][i] = 0;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int v = first + lane / 4 + 8 * half;
    tile.max[half] = -INFINITY;
    tile.total[half] = 0;
    tile.seen[half] = v < vectors ? seen_by(p, task, v / group) : Seen{0, 0};
  }
}

// Prompts: every warp has vectors of its own.
template <class T, int dim>
__device__ void put_tile(const Tile<dim>& tile, const AttentionParams& p, const AttentionTask& task, int head_group, int first, int vectors) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int v = first + lane / 4 + 8 * half;
    if (v >= vectors) continue;
#pragma unroll
    for (int n = 0; n < dim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) put_sum<T>(p, task, head_group, v, n * 8 + lane % 4 * 2 + i, tile.sums[n][2 * half + i], {tile.max[half], tile.total[half]});
    }
  }
}

// Decoding: the four warps' sums of the same vectors, put together in shared memory.
template <class T, int dim>
__device__ void put_together(const Tile<dim>& tile, const AttentionParams& p, const AttentionTask& task, int head_group, int vectors, float* shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  float* sums = shared;                                            // [warps][kTile][dim]
  float* most = sums + kAttentionWarps * kTile * dim;              // [warps][kTile]
  float* totals = most + kAttentionWarps * kTile;                  // [warps][kTile]
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int v = lane / 4 + 8 * half;
#pragma unroll
    for (int n = 0; n < dim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) sums[(warp * kTile + v) * dim + n * 8 + lane % 4 * 2 + i] = tile.sums[n][2 * half + i];
    }
    if (lane % 4 == 0) {
      most[warp * kTile + v] = tile.max[half];
      totals[warp * kTile + v] = tile.total[half];
    }
  }
  sync_block();
  for (int i = static_cast<int>(threadIdx.x); i < vectors * dim; i += kBlockThreads) {
    const int v = i / dim, d = i % dim;
    Total total{-INFINITY, 0};
    for (int w = 0; w < kAttentionWarps; ++w) total.max = fmaxf(total.max, most[w * kTile + v]);
    const float base = total.max == -INFINITY ? 0.0f : total.max;
    float x = 0;
    for (int w = 0; w < kAttentionWarps; ++w) {
      const float keep = power_of_two(most[w * kTile + v] - base);
      total.sum += keep * totals[w * kTile + v];
      x += keep * sums[(w * kTile + v) * dim + d];
    }
    put_sum<T>(p, task, head_group, v, d, x, total);
  }
}

template <class T, int dim, int stages>
__global__ void __launch_bounds__(kBlockThreads) tensor_kernel(const AttentionParams p, const DeviceSplit split, int page_shift) {
  if (static_cast<int>(blockIdx.x) >= split.counts[0]) return;
  const AttentionTask task = split.tasks[blockIdx.x];
  const AttentionHead head = p.heads[task.first_head];
  const int32_t* page_ids = p.page_ids + head.page_begin;
  const int vectors = task.n_rows * static_cast<int>(p.group), warp = static_cast<int>(threadIdx.x) / kWarp;
  const bool deep = vectors <= kTile;
  const int first = deep ? 0 : warp * kTile;
  const int begin = seen_by(p, task, 0).begin / kChunk * kChunk, end = seen_by(p, task, task.n_rows - 1).end;
  const float scale = p.scale * kLog2E;

  const Buffers<T, dim> buffers{reinterpret_cast<T*>(shared_memory()), reinterpret_cast<T*>(shared_memory()) + stages * 2 * kChunk * kRow<dim>};
#pragma unroll
  for (int i = 0; i < stages - 1; ++i) {
    if (begin + i * kChunk < end) fetch<T, dim>(p, page_ids, page_shift, begin + i * kChunk, end, buffers.keys(i), buffers.values(i));
    commit_copies();
  }
  load_queries<T, dim>(p, task, head.head_group, vectors, buffers.queries);
  sync_block();
  Tile<dim> tile;
  start(tile, p, task, first, vectors, buffers.queries);
  for (int token = begin, i = 0; token < end; token += kChunk, ++i) {
    wait_copies<stages - 2>();
    sync_block();  // everybody's copies of this chunk are there, and nobody reads the chunk before any more
    const int ahead = token + (stages - 1) * kChunk, into = (i + stages - 1) % stages;
    if (ahead < end) fetch<T, dim>(p, page_ids, page_shift, ahead, end, buffers.keys(into), buffers.values(into));
    commit_copies();
    const T* keys = buffers.keys(i % stages);
    const T* values = buffers.values(i % stages);
    if (first < vectors) {
      for (int part = deep ? warp : 0; part < kAttentionWarps; part += deep ? kAttentionWarps : 1) {
        const int at = token + part * kTile;
        if (at < end) attend<T, dim>(tile, keys + part * kTile * kRow<dim>, values + part * kTile * kRow<dim>, at, scale);
      }
    }
  }
  wait_copies<0>();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    tile.total[half] += from_other(tile.total[half], 1);
    tile.total[half] += from_other(tile.total[half], 2);
  }
  if (deep) {
    sync_block();
    put_together<T, dim>(tile, p, task, head.head_group, vectors, reinterpret_cast<float*>(shared_memory()));
  } else {
    put_tile<T, dim>(tile, p, task, head.head_group, first, vectors);
  }
}

template <class T, int dim>
void run(const AttentionParams& p, const DeviceSplit& split, Stream stream) {
  const int page_shift = __builtin_ctzll(static_cast<unsigned long long>(p.pages.page_tokens));
  const bool three = 2 * shared_bytes<dim>(3) <= chip().shared_bytes;  // two blocks of three stages on a processor, else as many blocks as can be of two
  const auto kernel = three ? tensor_kernel<T, dim, 3> : tensor_kernel<T, dim, 2>;
  launch(kernel, dim3(static_cast<unsigned>(split.most_tasks)), kBlockThreads, shared_bytes<dim>(three ? 3 : 2), stream, p, split, page_shift);
}

template <class T>
void run_any(const AttentionParams& p, const DeviceSplit& split, Stream stream) {
  switch (p.pages.head_dim) {
    case 64: return run<T, 64>(p, split, stream);
    case 80: return run<T, 80>(p, split, stream);
    case 96: return run<T, 96>(p, split, stream);
    default: return run<T, 128>(p, split, stream);
  }
}

}  // namespace

bool has_tensor_kernel(const AttentionParams& p) {
  const Pages& g = p.pages;
  const bool dims = g.head_dim == 64 || g.head_dim == 80 || g.head_dim == 96 || g.head_dim == 128;
  const bool pages = g.layout == Layout::plain && g.page_tokens >= kTile && (g.page_tokens & (g.page_tokens - 1)) == 0;
  return chip().major >= 8 && g.dtype != DType::float32 && dims && pages && p.group <= kChunk && p.q_stride % 8 == 0 && aligned(p.q, 16);
}

void attention_tensor(const AttentionParams& p, const DeviceSplit& split, Stream stream) {
  if (p.pages.dtype == DType::bfloat16) {
    run_any<bf16>(p, split, stream);
  } else {
    run_any<f16>(p, split, stream);
  }
}

}  // namespace hetserve::cuda
