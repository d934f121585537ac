#pragma once
/* What tests on Llama's layer call its modules, input groups and norms: their numbers in its plan. */

enum { LLAMA_Q, LLAMA_K, LLAMA_V, LLAMA_O, LLAMA_GATE, LLAMA_UP, LLAMA_DOWN, LLAMA_MODULES };
enum { READ_BY_QKV, READ_BY_O, READ_BY_GATE_UP, READ_BY_DOWN, LLAMA_GROUPS };
enum { INPUT_NORM, POST_ATTENTION_NORM };
