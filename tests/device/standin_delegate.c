/* A stand-in for libedgetpu: a real external delegate that takes the QUANTIZE node of a graph.
 *
 * It computes that node (uint8 with zero point 127 to int8 with zero point -1, one scale: the value with
 * its top bit flipped) and leaves the rest to the runtime. It reads STANDIN_DELEGATE/order before each
 * thing it does and obeys: "refuse" (no accelerator is found), "decline" (take no node), "abort", "hang",
 * "vanish" (an error from the node), "invert" (a wrong result). It appends its process id to STANDIN_DELEGATE/invokes at each
 * invoke, so that a test can see who computed what.
 *
 * The structs below are laid out as in LiteRT 2.3, tflite/core/c/common.h; of TfLiteContext and
 * TfLiteNode, which are only met by pointer, the beginning is enough. The two entry points are those of
 * tflite/delegates/external/external_delegate_interface.h. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, ERROR = 1 };
enum { BUILTIN_QUANTIZE = 114 };

typedef struct Context Context;
typedef struct Delegate Delegate;
typedef struct Node Node;
typedef struct Registration Registration;
typedef struct Tensor Tensor;

typedef struct {
    int size;
    int data[];
} IntArray;

struct Tensor {
    int type;
    void *data;
    IntArray *dims;
    struct {
        float scale;
        int32_t zero_point;
    } params;
    int allocation_type;
    size_t bytes;
    const void *allocation;
    const char *name;
    Delegate *delegate;
    int buffer_handle;
    bool data_is_stale;
    bool is_variable;
    struct {
        int type;
        void *params;
    } quantization;
    void *sparsity;
    const IntArray *dims_signature;
};

struct Node {
    IntArray *inputs;
    IntArray *outputs;
};

struct Registration {
    void *(*init)(Context *, const char *, size_t);
    void (*free)(Context *, void *);
    int (*prepare)(Context *, Node *);
    int (*invoke)(Context *, Node *);
    const char *(*profiling_string)(const Context *, const Node *);
    int32_t builtin_code;
    const char *custom_name;
    int version;
    void *registration_external;
    void *(*async_kernel)(Context *, Node *);
    uint64_t inplace_operator;
};

struct Context {
    size_t tensors_size;
    int (*get_execution_plan)(Context *, IntArray **);
    Tensor *tensors;
    void *impl;
    int (*resize_tensor)(Context *, Tensor *, IntArray *);
    void (*report_error)(Context *, const char *, ...);
    int (*add_tensors)(Context *, int, int *);
    int (*get_node_and_registration)(Context *, int, Node **, Registration **);
    int (*replace_node_subsets_with_delegate_kernels)(Context *, Registration, const IntArray *, Delegate *);
};

struct Delegate {
    void *data;
    int (*prepare)(Context *, Delegate *);
    int (*copy_from_buffer_handle)(Context *, Delegate *, int, Tensor *);
    int (*copy_to_buffer_handle)(Context *, Delegate *, int, Tensor *);
    void (*free_buffer_handle)(Context *, Delegate *, int *);
    int64_t flags;
    void *opaque_delegate_builder;
};

static FILE *open_beside(const char *name, const char *mode) {
    char path[4096];
    const char *folder = getenv("STANDIN_DELEGATE");
    snprintf(path, sizeof path, "%s/%s", folder ? folder : ".", name);
    return fopen(path, mode);
}

static bool ordered(const char *what) {
    char order[16] = "";
    FILE *file = open_beside("order", "r");
    if (file) {
        if (!fgets(order, sizeof order, file)) order[0] = 0;
        fclose(file);
    }
    return strcmp(order, what) == 0;
}

static int invoke(Context *context, Node *node) {
    FILE *file = open_beside("invokes", "a");
    if (file) {
        fprintf(file, "%d\n", (int)getpid());
        fclose(file);
    }
    if (ordered("abort")) abort();
    while (ordered("hang")) pause();
    if (ordered("vanish")) {
        context->report_error(context, "the accelerator does not answer. ");
        return ERROR;
    }
    const uint8_t flip = ordered("invert") ? 0x7f : 0x80;
    const Tensor *input = &context->tensors[node->inputs->data[0]];
    const Tensor *output = &context->tensors[node->outputs->data[0]];
    const uint8_t *from = input->data;
    uint8_t *to = output->data;
    for (size_t i = 0; i < output->bytes; ++i) to[i] = from[i] ^ flip;
    return OK;
}

static int prepare(Context *context, Delegate *delegate) {
    IntArray *plan;
    if (context->get_execution_plan(context, &plan) != OK) return ERROR;
    const Registration kernel = {.invoke = invoke, .custom_name = "StandinDelegate", .version = 1};
    IntArray *taken = malloc(sizeof *taken + sizeof taken->data[0]);
    taken->size = 0;
    for (int i = 0; i < plan->size && taken->size == 0 && !ordered("decline"); ++i) {
        Node *node;
        Registration *registration;
        const int index = plan->data[i];
        if (context->get_node_and_registration(context, index, &node, &registration) != OK) return ERROR;
        if (registration->builtin_code == BUILTIN_QUANTIZE) taken->data[taken->size++] = index;
    }
    const int status = context->replace_node_subsets_with_delegate_kernels(context, kernel, taken, delegate);
    free(taken);
    return status;
}

Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count,
                                        void (*report_error)(const char *)) {
    (void)keys, (void)values, (void)count;
    if (ordered("refuse")) {
        report_error("no device");
        return NULL;
    }
    Delegate *delegate = calloc(1, sizeof *delegate);
    delegate->prepare = prepare;
    return delegate;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) { free(delegate); }
