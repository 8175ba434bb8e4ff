// SPDX-License-Identifier: Apache-2.0
#include "core/hdf5_file.h"
#include <hdf5.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

void hdf5_library_version(unsigned version[3]) {
    if (H5get_libversion(&version[0], &version[1], &version[2]) < 0) version[0] = version[1] = version[2] = 0;
}

enum { CHUNK = 262144, GROWTH = 1 << 20, ALIGNMENT = 4096, MAX_DIMS = 4 };

typedef struct { // owned by the library between create and close, then by us
    void *memory;
    size_t bytes;
} Taken;

struct Hdf5Image {
    hid_t file;
    Taken *taken;
};

enum { OPEN_DATASETS = 4 };

struct Hdf5File {
    hid_t file;
    char *path;
    struct { // stay open, so that a chunk is inflated once for many reads
        char *name;
        hid_t id;
    } dataset[OPEN_DATASETS];
    int datasets;
};

// HDF5 1.10 crashes in its exit handler after a failed close; without the handler nothing is lost, since no
// file is ever left to the library to flush.
static void start_library(void) {
    H5dont_atexit();
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

static void start(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start_library);
}

static herr_t first_reason(unsigned n, const H5E_error2_t *error, void *out) {
    (void)n;
    *(const char **)out = error->desc;
    return 1;
}

// What the library says of the newest failure, innermost first. Valid until its next call.
static const char *reason(void) {
    const char *text = "unknown";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, first_reason, &text);
    return text;
}

// ---- the memory image. The library allocates through these; at the close of the file it hands the memory to
// image_free, which keeps it.
static void *image_malloc(size_t size, H5FD_file_image_op_t op, void *context) {
    (void)op;
    (void)context;
    return malloc(size);
}

static void *image_realloc(void *memory, size_t size, H5FD_file_image_op_t op, void *context) {
    (void)op;
    void *grown = realloc(memory, size);
    if (grown) ((Taken *)context)->bytes = size;
    return grown;
}

static herr_t image_free(void *memory, H5FD_file_image_op_t op, void *context) {
    if (op == H5FD_FILE_IMAGE_OP_FILE_CLOSE)
        ((Taken *)context)->memory = memory;
    else
        free(memory);
    return 0;
}

static void *context_copy(void *context) {
    return context;
}

static herr_t context_free(void *context) {
    (void)context;
    return 0;
}

static hid_t image_access(Taken *taken, size_t growth) {
    H5FD_file_image_callbacks_t calls = {.image_malloc = image_malloc,
                                         .image_realloc = image_realloc,
                                         .image_free = image_free,
                                         .udata_copy = context_copy,
                                         .udata_free = context_free,
                                         .udata = taken};
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (access < 0) return -1;
    // V110 metadata carries checksums of its own and reads in every later version.
    if (H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110) < 0 ||
        H5Pset_fapl_core(access, growth, 0) < 0 || H5Pset_alignment(access, ALIGNMENT, ALIGNMENT) < 0 ||
        H5Pset_file_image_callbacks(access, &calls) < 0) {
        H5Pclose(access);
        return -1;
    }
    return access;
}

Status hdf5_image_create(Hdf5Image **out, int64_t expected_bytes) {
    start();
    Hdf5Image *image = calloc(1, sizeof *image);
    Taken *taken = calloc(1, sizeof *taken);
    REQUIRE(image && taken, "out of memory");
    image->taken = taken;
    hid_t access = image_access(taken, (size_t)(expected_bytes > GROWTH ? expected_bytes : GROWTH));
    image->file = access < 0 ? -1 : H5Fcreate("image", H5F_ACC_TRUNC, H5P_DEFAULT, access);
    if (access >= 0) H5Pclose(access);
    *out = image;
    if (image->file >= 0) return OK;
    hdf5_image_abandon(image);
    *out = NULL;
    FAIL(ERR_RUNTIME, "HDF5: cannot begin a file: %s", reason());
}

void hdf5_image_abandon(Hdf5Image *image) {
    if (!image) return;
    if (image->file >= 0) H5Fclose(image->file);
    free(image->taken->memory);
    free(image->taken);
    free(image);
}

// The end-of-file address that the closed file's superblock (version 3) holds.
static size_t image_end(const unsigned char *image) {
    uint64_t end = 0;
    for (int i = 7; i >= 0; i--) end = end << 8 | image[28 + i];
    return (size_t)end;
}

Status hdf5_image_finish(Hdf5Image *image, void **data, size_t *held, size_t *bytes) {
    hid_t file = image->file;
    image->file = -1;
    int closed = H5Fclose(file) >= 0;
    *data = image->taken->memory;
    size_t allocated = image->taken->bytes;
    image->taken->memory = NULL;
    hdf5_image_abandon(image);
    *bytes = closed && *data && allocated >= 48 ? image_end(*data) : 0;
    *held = *bytes < allocated ? *bytes : allocated;
    if (*bytes >= 48) return OK;
    free(*data);
    *data = NULL;
    FAIL(ERR_RUNTIME, "HDF5: cannot finish a file: %s", closed ? "its length is unknown" : reason());
}

Status hdf5_image_group(Hdf5Image *image, const char *name) {
    hid_t group = H5Gcreate2(image->file, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    if (group < 0 || H5Gclose(group) < 0)
        FAIL(ERR_RUNTIME, "HDF5: cannot write group %s: %s", name, reason());
    return OK;
}

static Status attribute(Hdf5Image *image, const char *name, hid_t type, const void *value) {
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t id = H5Acreate2(image->file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    int good = id >= 0 && H5Awrite(id, type, value) >= 0;
    good = id >= 0 && H5Aclose(id) >= 0 && good;
    H5Sclose(space);
    if (!good) FAIL(ERR_RUNTIME, "HDF5: cannot write attribute %s: %s", name, reason());
    return OK;
}

Status hdf5_image_attribute_i64(Hdf5Image *image, const char *name, int64_t value) {
    return attribute(image, name, H5T_STD_I64LE, &value);
}

static hid_t text_type(size_t bytes) {
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, bytes);
    H5Tset_cset(type, H5T_CSET_UTF8);
    return type;
}

Status hdf5_image_attribute_text(Hdf5Image *image, const char *name, const char *text) {
    hid_t type = text_type(strlen(text) + 1);
    Status status = attribute(image, name, type, text);
    H5Tclose(type);
    return status;
}

// Contiguous data has an address from the start and is never filled first.
static hid_t contiguous(void) {
    hid_t create = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_alloc_time(create, H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(create, H5D_FILL_TIME_NEVER);
    return create;
}

static Status dataset(Hdf5Image *image, const char *name, hid_t type, const void *data, int dims,
                      const int64_t dim[]) {
    hsize_t size[MAX_DIMS] = {0};
    int64_t elements = 1;
    REQUIRE(dims >= 1 && dims <= MAX_DIMS, "%s: %d dimensions", name, dims);
    for (int i = 0; i < dims; i++) {
        size[i] = (hsize_t)dim[i];
        elements *= dim[i];
    }
    hid_t space = H5Screate_simple(dims, size, NULL), create = contiguous();
    hid_t id = H5Dcreate2(image->file, name, type, space, H5P_DEFAULT, create, H5P_DEFAULT);
    int good = id >= 0 && (!elements || H5Dwrite(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    good = id >= 0 && H5Dclose(id) >= 0 && good;
    H5Pclose(create);
    H5Sclose(space);
    if (!good) FAIL(ERR_RUNTIME, "HDF5: cannot write dataset %s: %s", name, reason());
    return OK;
}

static Status table(Hdf5Image *image, const char *name, hid_t type, const void *data, int64_t rows,
                    int64_t columns) {
    return dataset(image, name, type, data, columns ? 2 : 1, (int64_t[]){rows, columns});
}

Status hdf5_image_f32(Hdf5Image *image, const char *name, const float *data, int dims, const int64_t dim[]) {
    return dataset(image, name, H5T_IEEE_F32LE, data, dims, dim);
}

Status hdf5_image_f32_apart(Hdf5Image *image, const char *name, int64_t count, int64_t *offset) {
    hsize_t size = (hsize_t)count;
    hid_t space = H5Screate_simple(1, &size, NULL), create = contiguous();
    hid_t id = H5Dcreate2(image->file, name, H5T_IEEE_F32LE, space, H5P_DEFAULT, create, H5P_DEFAULT);
    haddr_t address = id >= 0 && count ? H5Dget_offset(id) : 0;
    int good = id >= 0 && H5Dclose(id) >= 0 && address != HADDR_UNDEF;
    H5Pclose(create);
    H5Sclose(space);
    if (!good) FAIL(ERR_RUNTIME, "HDF5: cannot make room for dataset %s: %s", name, reason());
    *offset = (int64_t)address;
    return OK;
}

Status hdf5_image_i64(Hdf5Image *image, const char *name, const int64_t *data, int64_t rows,
                      int64_t columns) {
    return table(image, name, H5T_STD_I64LE, data, rows, columns);
}

Status hdf5_image_u32(Hdf5Image *image, const char *name, const uint32_t *data, int64_t rows,
                      int64_t columns) {
    return table(image, name, H5T_STD_U32LE, data, rows, columns);
}

Status hdf5_image_names(Hdf5Image *image, const char *name, const char *data, int64_t rows,
                        size_t bytes_each) {
    hid_t type = text_type(bytes_each);
    Status status = table(image, name, type, data, rows, 0);
    H5Tclose(type);
    return status;
}

// Byte k of every value, then byte k + 1, …: what the shuffle filter makes of a chunk. Padded with zeros.
static void shuffle(const float *data, int64_t count, int64_t chunk, unsigned char *planes) {
    const unsigned char *bytes = (const unsigned char *)data;
    for (int k = 0; k < 4; k++) {
        unsigned char *plane = planes + k * chunk;
        for (int64_t i = 0; i < count; i++) plane[i] = bytes[4 * i + k];
        memset(plane + count, 0, (size_t)(chunk - count));
    }
}

// One standard zlib stream. Sign and mantissa do not shrink: the three lower planes are stored; the top one,
// sign and exponent, is Huffman-coded. Returns its length.
static size_t deflate_chunk(z_stream *stream, unsigned char *planes, int64_t chunk, unsigned char *out,
                            size_t room) {
    deflateReset(stream);
    deflateParams(stream, 0, Z_DEFAULT_STRATEGY);
    stream->next_in = planes;
    stream->avail_in = (uInt)(3 * chunk);
    stream->next_out = out;
    stream->avail_out = (uInt)room;
    int good = deflate(stream, Z_NO_FLUSH) == Z_OK && stream->avail_in == 0;
    good = good && deflateParams(stream, 1, Z_HUFFMAN_ONLY) == Z_OK;
    stream->next_in = planes + 3 * chunk;
    stream->avail_in = (uInt)chunk;
    good = good && deflate(stream, Z_FINISH) == Z_STREAM_END;
    REQUIRE(good, "zlib: a chunk of %ld values does not fit %zu bytes", (long)chunk, room);
    return room - stream->avail_out;
}

static int write_chunks(hid_t id, const float *data, int64_t count, int64_t chunk) {
    z_stream stream = {0};
    size_t room = (size_t)(4 * chunk + chunk / 2 + 4096);
    unsigned char *planes = malloc((size_t)(4 * chunk)), *out = malloc(room);
    REQUIRE(planes && out && deflateInit2(&stream, 0, Z_DEFLATED, 15, 8, Z_DEFAULT_STRATEGY) == Z_OK,
            "out of memory: compression");
    int good = 1;
    for (int64_t first = 0; good && first < count; first += chunk) {
        int64_t here = count - first < chunk ? count - first : chunk;
        shuffle(data + first, here, chunk, planes);
        size_t bytes = deflate_chunk(&stream, planes, chunk, out, room);
        good = H5Dwrite_chunk(id, H5P_DEFAULT, 0, &(hsize_t){(hsize_t)first}, bytes, out) >= 0;
    }
    deflateEnd(&stream);
    free(planes);
    free(out);
    return good;
}

Status hdf5_image_f32_zlib(Hdf5Image *image, const char *name, const float *data, int64_t count) {
    if (count == 0) return hdf5_image_f32(image, name, data, 1, &count);
    int64_t chunks = (count + CHUNK - 1) / CHUNK, chunk = (count + chunks - 1) / chunks; // hardly any padding
    hsize_t size = (hsize_t)count, chunk_size = (hsize_t)chunk;
    hid_t space = H5Screate_simple(1, &size, NULL), create = H5Pcreate(H5P_DATASET_CREATE);
    int good = H5Pset_chunk(create, 1, &chunk_size) >= 0 && H5Pset_shuffle(create) >= 0 &&
               H5Pset_deflate(create, 1) >= 0;
    hid_t id =
        good ? H5Dcreate2(image->file, name, H5T_IEEE_F32LE, space, H5P_DEFAULT, create, H5P_DEFAULT) : -1;
    good = id >= 0 && write_chunks(id, data, count, chunk);
    good = id >= 0 && H5Dclose(id) >= 0 && good;
    H5Pclose(create);
    H5Sclose(space);
    if (!good) FAIL(ERR_RUNTIME, "HDF5: cannot write dataset %s: %s", name, reason());
    return OK;
}

Status hdf5_image_offset(Hdf5Image *image, const char *name, int64_t *offset) {
    hid_t id = H5Dopen2(image->file, name, H5P_DEFAULT);
    if (id < 0) FAIL(ERR_RUNTIME, "HDF5: no dataset %s: %s", name, reason());
    haddr_t address = H5Dget_offset(id);
    *offset = address == HADDR_UNDEF ? -1 : (int64_t)address;
    H5Dclose(id);
    return OK;
}

// ---- reading
Status hdf5_file_open(Hdf5File **out, const char *path) {
    start();
    Hdf5File *file = calloc(1, sizeof *file);
    REQUIRE(file && (file->path = strdup(path)), "out of memory");
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_file_locking(access, 0, 1); // no locks: many network file systems refuse them, and nobody writes
    file->file = H5Fopen(path, H5F_ACC_RDONLY, access);
    H5Pclose(access);
    *out = file;
    if (file->file >= 0) return OK;
    *out = NULL;
    free(file->path);
    free(file);
    FAIL(ERR_DATA, "%s: HDF5 cannot open it: %s", path, reason());
}

void hdf5_file_close(Hdf5File *file) {
    if (!file) return;
    for (int i = 0; i < file->datasets; i++) {
        H5Dclose(file->dataset[i].id);
        free(file->dataset[i].name);
    }
    H5Fclose(file->file);
    free(file->path);
    free(file);
}

static Status open_dataset(Hdf5File *file, const char *name, hid_t *id) {
    for (int i = 0; i < file->datasets; i++)
        if (!strcmp(file->dataset[i].name, name)) {
            *id = file->dataset[i].id;
            return OK;
        }
    REQUIRE(file->datasets < OPEN_DATASETS, "%s: more than %d datasets in use", file->path, OPEN_DATASETS);
    hid_t access = H5Pcreate(H5P_DATASET_ACCESS);
    H5Pset_chunk_cache(access, 101, 2 * CHUNK * sizeof(float), 1);
    *id = H5Dopen2(file->file, name, access);
    H5Pclose(access);
    if (*id < 0) FAIL(ERR_DATA, "%s: no dataset %s: %s", file->path, name, reason());
    file->dataset[file->datasets].id = *id;
    file->dataset[file->datasets].name = strdup(name);
    REQUIRE(file->dataset[file->datasets++].name, "out of memory");
    return OK;
}

Status hdf5_file_count(Hdf5File *file, const char *name, int64_t *count) {
    hid_t id;
    TRY(open_dataset(file, name, &id));
    hid_t space = H5Dget_space(id);
    *count = space < 0 ? -1 : (int64_t)H5Sget_simple_extent_npoints(space);
    if (space >= 0) H5Sclose(space);
    if (*count < 0) FAIL(ERR_DATA, "%s: dataset %s: %s", file->path, name, reason());
    return OK;
}

Status hdf5_file_read_f32(Hdf5File *file, const char *name, int64_t first, int64_t count, float *out) {
    hid_t id;
    if (count == 0) return OK;
    TRY(open_dataset(file, name, &id));
    hsize_t start_at = (hsize_t)first, size = (hsize_t)count;
    hid_t from = H5Dget_space(id), to = H5Screate_simple(1, &size, NULL);
    int good = from >= 0 && H5Sget_simple_extent_ndims(from) == 1 &&
               H5Sselect_hyperslab(from, H5S_SELECT_SET, &start_at, NULL, &size, NULL) >= 0 &&
               H5Dread(id, H5T_NATIVE_FLOAT, to, from, H5P_DEFAULT, out) >= 0;
    H5Sclose(to);
    if (from >= 0) H5Sclose(from);
    if (!good)
        FAIL(ERR_DATA, "%s: dataset %s: cannot read %ld values from %ld: %s", file->path, name, (long)count,
             (long)first, reason());
    return OK;
}
