// One plain struct per op: pointers with their shape in a comment, strides in elements, the last dimension always contiguous.
// "T" is float or bf16 as `dtype` says. Nothing here owns memory.
#pragma once

#include <cstdint>

#include "hetserve/dtype.h"
#include "hetserve/pages.h"

namespace hetserve {

// n_rows consecutive tokens of one sequence, seen by the r query heads of one KV head.
// Row i (of n_rows) sees the first length - n_rows + 1 + i tokens of the sequence: causal, its own token included.
struct AttentionItem {
  int32_t q_row;
  int32_t n_rows;
  int32_t head_group;
  int32_t page_begin;  // into page_ids
  int32_t length;
  int32_t reserved;
};

// One KV head of a task: its query heads and its page list.
struct AttentionHead {
  int32_t head_group;
  int32_t page_begin;  // token 0 is in page_ids[page_begin]
};

// What one thread does at a time: some rows of one sequence, over some of its tokens, for one head group or several. Head groups of a sequence
// share a task because their pages were handed out together and lie side by side: read in turn, they are one long run of memory.
struct AttentionTask {
  int32_t q_row;
  int32_t n_rows;
  int32_t first_head;  // into heads
  int32_t n_heads;
  int32_t first_length;  // tokens seen by the first row of this task; row i sees first_length + i
  int32_t token_begin;   // of this piece, a multiple of page_tokens
  int32_t token_end;
  int32_t partial;   // first partial result of this piece (n_heads * n_rows * group of them), or -1: the piece is the whole sequence, for out
  int32_t in_order;  // 1: most of its pages, page by page and head by head, follow one another in memory; a hint
};

// Pieces of the same rows and heads: `parts` sets of partials, one after another.
struct AttentionMerge {
  int32_t q_row;
  int32_t n_rows;
  int32_t first_head;
  int32_t n_heads;
  int32_t first;
  int32_t parts;
};

struct AttentionParams {
  Pages pages;
  int64_t layer;
  const void* q;            // T [rows, q_heads * head_dim], row stride q_stride
  void* out;                // T, the same shape, row stride out_stride
  const int32_t* page_ids;  // [any]
  const AttentionHead* heads;  // [any]
  float* partials;          // [partials, head_dim + 2]: sum of exp(s - max) * v, then max, then sum of exp(s - max)
  int64_t q_stride;
  int64_t out_stride;
  int64_t group;  // r: query heads per KV head
  int64_t window;  // > 0: a row sees at most its last `window` tokens
  float scale;
};

struct KvStoreParams {
  Pages pages;
  int64_t layer;
  const void* k;         // T [rows, kv_heads * head_dim], row stride k_stride
  const void* v;         // T, the same shape, row stride v_stride
  const int32_t* slots;  // [rows, kv_heads]: page * page_tokens + offset, or -1: not stored here
  int64_t rows;
  int64_t kv_heads;
  int64_t k_stride;
  int64_t v_stride;
};

struct PageCopyParams {
  Pages src;
  Pages dst;                 // same dtype, head_dim, page_tokens; the layouts may differ
  const int32_t* src_pages;  // [n]
  const int32_t* dst_pages;  // [n]
  int64_t n;
  int64_t first_layer;
  int64_t last_layer;  // exclusive
};

// gather: pages -> rows; scatter: rows -> pages.
struct PageRowsParams {
  Pages pages;
  const int32_t* page_ids;  // [n]
  void* rows;               // T [n, layers, 2, page_tokens, head_dim], contiguous; layers = last_layer - first_layer
  int64_t n;
  int64_t first_layer;
  int64_t last_layer;  // exclusive
};

// pack: x -> packed; unpack: packed -> x.
struct HeadsParams {
  void* x;               // T [rows, heads * head_dim], row stride x_stride
  void* packed;          // T [m, span * head_dim], row stride packed_stride
  const int32_t* pairs;  // [m, 2]: (row, head); pair i moves heads head * span .. + span - 1 of that row
  int64_t m;
  int64_t x_stride;
  int64_t packed_stride;
  int64_t span_bytes;  // span * head_dim * bytes of T
  DType dtype;
};

// RMSNorm and LayerNorm, with or without the residual add before them.
struct NormParams {
  const void* x;       // T [rows, heads, dim], strides x_row, x_head
  void* residual;      // T, the same shape, strides residual_row, residual_head; null: none. Becomes residual + x, which is then normalised
  const void* weight;  // T [dim]
  const void* bias;    // T [dim], or null
  void* out;           // T, the same shape, strides out_row, out_head; may be x
  int64_t rows;
  int64_t heads;
  int64_t dim;
  int64_t x_row, x_head;
  int64_t residual_row, residual_head;
  int64_t out_row, out_head;
  float eps;
  DType dtype;
};

// Rotary embedding in place, rotate-half: (x[i], x[i + rot/2]) turned by the angle of position and i.
struct RopeParams {
  void* q;                   // T [rows, q_heads * head_dim], row stride q_stride
  void* k;                   // T [rows, kv_heads * head_dim], row stride k_stride
  const int32_t* positions;  // [rows]
  const float* cos_sin;      // [max_pos, 2, rot_half]: cosines, then sines
  int64_t rows;
  int64_t q_heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t rot_half;
  int64_t q_stride;
  int64_t k_stride;
  DType dtype;
};

// out = index of the largest element of each row, the lowest of several; a NaN is larger than any number.
struct ArgmaxParams {
  const void* x;  // T [rows, n], row stride x_stride
  int32_t* out;   // [rows]
  int64_t rows;
  int64_t n;
  int64_t x_stride;
  DType dtype;
};

// Columns and pairs of inputs that lie together in a weight made ready for LinearParams.
constexpr int64_t kLinearColumns = 64;
constexpr int64_t kLinearPairs = 16;

// out = x W^T + bias, with W in the order in which oneDNN keeps it for bfloat16 (its name there: AB16b64a2b).
struct LinearParams {
  const bf16* x;       // [rows, inputs], row stride x_stride
  const bf16* weight;  // [outputs / 64][inputs / 32][16][64][2]: of 64 columns one pair of inputs after the other, 16 times over
  const bf16* bias;    // [outputs], or null
  bf16* out;           // [rows, outputs], row stride out_stride
  int64_t rows;
  int64_t inputs;   // a multiple of 32
  int64_t outputs;  // a multiple of 64
  int64_t x_stride;
  int64_t out_stride;
  bool relu;
};

struct SiluMulParams {
  const void* gate_up;  // T [rows, 2 * n], row stride gate_up_stride: gate, then up
  void* out;            // T [rows, n], row stride out_stride
  int64_t rows;
  int64_t n;
  int64_t gate_up_stride;
  int64_t out_stride;
  DType dtype;
};

}  // namespace hetserve
