// SPDX-License-Identifier: Apache-2.0
#include "data/corpus.h"
#include "test_data_fixture.h"
#include <fcntl.h>
#include <unistd.h>

// The bytes of an index, so that each field can be made wrong.
typedef struct {
    char magic[9];
    int64_t version, sequences, bounds;
    uint8_t type;
    int32_t length[8];
    int64_t offset[8], first[8];
    int modes; // 1: a byte a sequence at the end
    int cut;   // bytes missing at the end
} Index;

static Index good_index(TokenType type, int sequences, const int32_t *length) {
    Index index = {.magic = "MMIDIDX",
                   .version = 1,
                   .sequences = sequences,
                   .bounds = sequences + 1,
                   .type = (uint8_t)type};
    for (int i = 0; i < sequences; i++) {
        index.length[i] = length[i];
        if (i > 0) index.offset[i] = index.offset[i - 1] + length[i - 1] * (int64_t)token_type_bytes(type);
        index.first[i + 1] = i + 1;
    }
    return index;
}

static size_t put(char *to, size_t at, const void *data, size_t bytes) {
    memcpy(to + at, data, bytes);
    return at + bytes;
}

// The header may lie; the arrays hold `stored` sequences.
static void write_index(const Index *index, int stored) {
    char bytes[1024];
    size_t n = put(bytes, 0, index->magic, 9);
    n = put(bytes, n, &index->version, 8);
    n = put(bytes, n, &index->type, 1);
    n = put(bytes, n, &index->sequences, 8);
    n = put(bytes, n, &index->bounds, 8);
    n = put(bytes, n, index->length, 4 * (size_t)stored);
    n = put(bytes, n, index->offset, 8 * (size_t)stored);
    n = put(bytes, n, index->first, 8 * (size_t)(stored + 1));
    if (index->modes) n = put(bytes, n, "\0\0\0\0\0\0\0\0", (size_t)stored);
    write_bytes(in_test_folder("s.idx"), bytes, n - (size_t)index->cut);
}

static Status open_status(void) {
    Shard *shard;
    Status status = shard_open(&shard, in_test_folder("s"));
    shard_close(shard);
    return status;
}

static const int32_t lengths[3] = {3, 0, 2};

static Index good_pair(void) {
    const uint16_t tokens[5] = {1, 2, 3, 4, 5};
    write_bytes(in_test_folder("s.bin"), tokens, sizeof tokens);
    return good_index(TOKEN_U16, 3, lengths);
}

static void reads_every_type(void **state) {
    (void)state;
    const struct {
        TokenType type;
        int bytes;
        const void *data;
    } row[] = {
        {TOKEN_U8, 1, (const uint8_t[]){0, 255, 7, 8, 9}},
        {TOKEN_I8, 1, (const int8_t[]){0, 127, 7, 8, 9}},
        {TOKEN_I16, 2, (const int16_t[]){0, 32767, 7, 8, 9}},
        {TOKEN_I32, 4, (const int32_t[]){0, 2147483646, 7, 8, 9}},
        {TOKEN_I64, 8, (const int64_t[]){0, 2147483646, 7, 8, 9}},
        {TOKEN_U16, 2, (const uint16_t[]){0, 65535, 7, 8, 9}},
    };
    static const int32_t second[] = {255, 127, 32767, 2147483646, 2147483646, 65535};
    for (int i = 0; i < 6; i++) {
        write_bytes(in_test_folder("s.bin"), row[i].data, 5 * (size_t)row[i].bytes);
        Index index = good_index(row[i].type, 3, lengths);
        index.modes = i % 2;
        write_index(&index, 3);
        Shard *shard;
        int32_t tokens[5];
        assert_int_equal(shard_open(&shard, in_test_folder(i % 2 ? "s" : "s.idx")), OK);
        assert_int_equal(shard_tokens(shard), 5);
        assert_int_equal(shard_documents(shard), 3);
        assert_int_equal(shard_document_start(shard, 2), 3);
        assert_int_equal(shard_document_start(shard, 3), 5);
        assert_int_equal(shard_type(shard), row[i].type);
        assert_int_equal(shard_read(shard, 0, 5, SHARD_ANY_VOCAB, tokens), OK);
        const int32_t expected[5] = {0, second[i], 7, 8, 9};
        assert_memory_equal(tokens, expected, sizeof tokens);
        assert_int_equal(shard_read(shard, 3, 2, 10, tokens), OK); // the large id lies outside
        assert_int_equal(tokens[1], 9);
        shard_close(shard);
    }
}

static void wrong_ids_are_named(void **state) {
    (void)state;
    const int64_t tokens[5] = {1, 2, -3, (int64_t)1 << 32, 5};
    write_bytes(in_test_folder("s.bin"), tokens, sizeof tokens);
    Index index = good_index(TOKEN_I64, 3, lengths);
    write_index(&index, 3);
    Shard *shard;
    int32_t out[5];
    assert_int_equal(shard_open(&shard, in_test_folder("s")), OK);
    assert_failed(shard_read(shard, 0, 5, 100, out), ERR_DATA, "s.bin: token 2 is -3", "floe data verify");
    assert_failed(shard_read(shard, 3, 2, 100, out), ERR_DATA, "s.bin: token 3 is 4294967296", "0 … 99");
    assert_failed(shard_read(shard, 3, 2, SHARD_ANY_VOCAB, out), ERR_DATA, "token 3", "");
    assert_failed(shard_read(shard, 4, 1, 5, out), ERR_DATA, "token 4 is 5", "0 … 4");
    assert_int_equal(shard_read(shard, 4, 1, 6, out), OK);
    shard_close(shard);
}

static void damaged_header_is_named(void **state) {
    (void)state;
    const Index good = good_pair();
    write_index(&good, 3);
    assert_int_equal(open_status(), OK);
    Index bad = good;
    bad.magic[2] = 'X';
    write_index(&bad, 3);
    assert_failed(open_status(), ERR_DATA, "s.idx is not a token index", "pack");
    bad = good;
    bad.version = 2;
    write_index(&bad, 3);
    assert_failed(open_status(), ERR_DATA, "s.idx: version 2", "version 1");
    bad = good;
    bad.type = 7;
    write_index(&bad, 3);
    assert_failed(open_status(), ERR_DATA, "type code 7", "floating-point");
    bad.type = 9;
    write_index(&bad, 3);
    assert_failed(open_status(), ERR_DATA, "type code 9", "8 u16");
    bad = good;
    bad.sequences = 4;
    write_index(&bad, 3);
    assert_failed(open_status(), ERR_DATA, "4 sequences", "truncated");
    bad.sequences = 3 + ((int64_t)1 << 62); // 12 bytes each are 36 modulo 2^64
    write_index(&bad, 3);
    assert_failed(open_status(), ERR_DATA, "sequences", "truncated");
    bad = good;
    bad.bounds = -1;
    write_index(&bad, 3);
    assert_failed(open_status(), ERR_DATA, "-1 document bounds", "truncated");
}

static void damaged_arrays_are_named(void **state) {
    (void)state;
    const Index good = good_pair();
    Index bad = good;
    bad.length[0] = -3;
    write_index(&bad, 3);
    assert_failed(open_status(), ERR_DATA, "sequence 0 has length -3", "s.idx");
    bad = good;
    bad.offset[2] = 8;
    write_index(&bad, 3);
    assert_failed(open_status(), ERR_DATA, "sequence 2 begins at byte 8", "end at 6");
    bad = good;
    bad.length[2] = 3; // lies: one more token than .bin has
    write_index(&bad, 3);
    assert_failed(open_status(), ERR_DATA, "s.bin has 10 bytes", "12");
    bad = good;
    bad.length[2] = 1;
    write_index(&bad, 3);
    assert_failed(open_status(), ERR_DATA, "s.bin has 10 bytes", "counts 8");
    bad = good;
    bad.offset[2] = (int64_t)1 << 40; // beyond the file
    write_index(&bad, 3);
    assert_failed(open_status(), ERR_DATA, "sequence 2 begins at byte 1099511627776", "s.idx");
    bad = good;
    bad.first[1] = 3;
    write_index(&bad, 3);
    assert_failed(open_status(), ERR_DATA, "document bound 2 is 2", "after 3");
    bad = good;
    bad.first[3] = 2;
    write_index(&bad, 3);
    assert_failed(open_status(), ERR_DATA, "document bound 3 is 2", "3 sequences");
}

static void damaged_files_are_named(void **state) {
    (void)state;
    const Index good = good_pair();
    const uint16_t tokens[5] = {1, 2, 3, 4, 5};
    for (int cut = 1; cut < 34 + 3 * 12 + 4 * 8; cut += 7) {
        Index bad = good;
        bad.cut = cut;
        write_index(&bad, 3);
        assert_failed(open_status(), ERR_DATA, "s.idx", "");
    }
    write_index(&good, 3);
    write_bytes(in_test_folder("s.bin"), tokens, 9);
    assert_failed(open_status(), ERR_DATA, "s.bin has 9 bytes", "truncated");
    write_bytes(in_test_folder("s.bin"), tokens, 0);
    assert_failed(open_status(), ERR_DATA, "s.bin has 0 bytes", "truncated");
    write_bytes(in_test_folder("s.idx"), tokens, 0);
    assert_failed(open_status(), ERR_DATA, "s.idx has 0 bytes", "header");
    write_bytes(in_test_folder("s.bin"), tokens, sizeof tokens);
    write_index(&good, 3);
    assert_int_equal(rename(in_test_folder("s.idx"), in_test_folder("t.bin")), 0);
    assert_failed(open_status(), ERR_DATA, "s.idx: No such file", "floe data pack");
    assert_int_equal(rename(in_test_folder("s.bin"), in_test_folder("t.idx")), 0);
    Shard *shard;
    assert_failed(shard_open(&shard, in_test_folder("t")), ERR_DATA, "swapped", "t.idx");
}

static void empty_shards_are_errors(void **state) {
    (void)state;
    write_bytes(in_test_folder("s.bin"), "", 0);
    Index index = good_index(TOKEN_U16, 0, NULL);
    write_index(&index, 0);
    assert_failed(open_status(), ERR_DATA, "s.idx counts no tokens", "pack some text");
    index = good_index(TOKEN_U16, 2, (const int32_t[]){0, 0});
    write_index(&index, 2);
    assert_failed(open_status(), ERR_DATA, "s.bin holds no tokens", "pack some text");
}

static void writer_and_reader_agree(void **state) {
    (void)state;
    static const int vocabs[] = {300, 65499, 65500, 2000000};
    for (int v = 0; v < 4; v++) {
        ShardWriter *writer;
        const char *prefix = in_test_folder("deep/folder/s");
        int32_t document[7] = {0, vocabs[v] - 1, 5, 6, 7, 8, 9}, tokens[8];
        assert_int_equal(shard_writer_create(&writer, prefix, vocabs[v]), OK);
        assert_int_equal(shard_writer_add(writer, document, 3), OK);
        assert_int_equal(shard_writer_add(writer, document + 3, 0), OK);
        assert_int_equal(shard_writer_add(writer, document + 3, 4), OK);
        assert_int_equal(shard_writer_tokens(writer), 7);
        assert_int_equal(shard_writer_finish(writer), OK);
        Shard *shard;
        assert_int_equal(shard_open(&shard, prefix), OK);
        assert_int_equal(shard_type(shard), vocabs[v] < 65500 ? TOKEN_U16 : TOKEN_I32);
        assert_int_equal(shard_documents(shard), 3);
        assert_int_equal(shard_document_start(shard, 1), 3);
        assert_int_equal(shard_document_start(shard, 2), 3);
        assert_int_equal(shard_read(shard, 0, 7, vocabs[v], tokens), OK);
        assert_memory_equal(tokens, document, sizeof document);
        shard_close(shard);
    }
}

static void put_byte(const char *path, off_t at, char value) {
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, &value, 1, at), 1);
    close(fd);
}

// Every bit of the three files counts; what is not read is not looked at, shards of other programs are read
// as they are.
static void checksums_see_damage(void **state) {
    (void)state;
    enum { TOKENS = 20000 }; // 3 blocks
    static const char *const files[] = {"s.bin", "s.idx", "s.crc"};
    static int32_t tokens[TOKENS];
    ShardWriter *writer;
    for (int32_t i = 0; i < TOKENS; i++) tokens[i] = i;
    assert_int_equal(shard_writer_create(&writer, in_test_folder("s"), 40000), OK);
    for (int d = 0; d < 4; d++) assert_int_equal(shard_writer_add(writer, tokens + 5000 * d, 5000), OK);
    assert_int_equal(shard_writer_finish(writer), OK);
    for (int f = 0; f < 3; f++) {
        char *data;
        size_t bytes;
        assert_int_equal(file_read_all(in_test_folder(files[f]), &data, &bytes), OK);
        for (size_t bit = 0; bit < 8 * bytes; bit += 1 + bytes / 200) {
            Shard *shard;
            put_byte(in_test_folder(files[f]), (off_t)(bit / 8), (char)(data[bit / 8] ^ 1 << bit % 8));
            Status status = shard_open(&shard, in_test_folder("s"));
            if (status == OK) status = shard_read(shard, 0, TOKENS, SHARD_ANY_VOCAB, tokens);
            assert_failed(status, ERR_DATA, files[f], "");
            put_byte(in_test_folder(files[f]), (off_t)(bit / 8), data[bit / 8]);
            shard_close(shard);
        }
        free(data);
    }
    Shard *shard;
    const uint16_t wrong = 7;
    assert_int_equal(shard_open(&shard, in_test_folder("s")), OK);
    assert_true(shard_has_sums(shard));
    shard_close(shard);
    int fd = open(in_test_folder("s.bin"), O_WRONLY);
    assert_int_equal(pwrite(fd, &wrong, 2, 2 * 9000), 2); // in the second block
    close(fd);
    assert_int_equal(shard_open(&shard, in_test_folder("s")), OK);
    assert_int_equal(shard_read(shard, 0, 8192, 40000, tokens), OK);
    assert_failed(shard_read(shard, 8191, 2, 40000, tokens), ERR_DATA, "bytes 16384 to 32768", "s.crc");
    assert_int_equal(shard_read(shard, 16384, TOKENS - 16384, 40000, tokens), OK);
    shard_close(shard);
    make_shard(in_test_folder("t"), 10, 40000, 0, 1);
    assert_int_equal(rename(in_test_folder("t.crc"), in_test_folder("s.crc")), 0);
    assert_failed(open_status(), ERR_DATA, "s.crc belongs to a shard of other sizes", "remove it");
    assert_int_equal(unlink(in_test_folder("s.crc")), 0);
    assert_int_equal(shard_open(&shard, in_test_folder("s")), OK);
    assert_false(shard_has_sums(shard));
    assert_int_equal(shard_read(shard, 8191, 2, 40000, tokens), OK);
    shard_close(shard);
}

static void nothing_is_left_of_a_cancelled_writer(void **state) {
    (void)state;
    ShardWriter *writer, *second;
    int exists;
    make_shard(in_test_folder("s"), 10, 100, 0, 1);
    assert_int_equal(shard_writer_create(&writer, in_test_folder("s"), 100), OK);
    assert_failed(shard_writer_create(&second, in_test_folder("s"), 100), ERR_RUNTIME, "another process",
                  "s.bin.tmp");
    assert_int_equal(shard_writer_add(writer, (const int32_t[]){1, 2, 3}, 3), OK);
    shard_writer_cancel(writer);
    assert_int_equal(file_exists(in_test_folder("s.bin.tmp"), &exists), OK);
    assert_false(exists);
    assert_int_equal(file_exists(in_test_folder("s.idx.tmp"), &exists), OK);
    assert_false(exists);
    assert_int_equal(file_exists(in_test_folder("s.crc.tmp"), &exists), OK);
    assert_false(exists);
    assert_int_equal(open_status(), OK); // the old pair
    assert_failed(shard_writer_create(&writer, "/proc/no/such", 100), ERR_RUNTIME, "/proc/no", "");
}

static void corpus_joins_shards(void **state) {
    (void)state;
    make_shard(in_test_folder("a"), 5, 1000, 0, 1);
    make_shard(in_test_folder("b"), 1, 1000, 5, 1);
    make_shard(in_test_folder("c"), 70000, 100000, 6, 1); // other width
    Corpus *corpus, *other;
    const char *names[] = {in_test_folder("a"), in_test_folder("b"), in_test_folder("c")};
    assert_int_equal(corpus_open(&corpus, names, 3), OK);
    assert_int_equal(corpus_tokens(corpus), 70006);
    int32_t tokens[12];
    for (int64_t first = 0; first < 12; first++) {
        assert_int_equal(corpus_read(corpus, first, 12, 100000, tokens), OK);
        for (int i = 0; i < 12; i++) assert_int_equal(tokens[i], first + i);
    }
    assert_int_equal(corpus_read(corpus, 70005, 1, 100000, tokens), OK);
    assert_int_equal(tokens[0], 70005);
    const char *swapped[] = {names[1], names[0], names[2]};
    assert_int_equal(corpus_open(&other, swapped, 3), OK);
    assert_true(corpus_identity(other) != corpus_identity(corpus));
    corpus_close(other);
    make_shard(in_test_folder("a"), 5, 1000, 1, 1); // same size, other content
    assert_int_equal(corpus_open(&other, names, 3), OK);
    assert_true(corpus_identity(other) != corpus_identity(corpus));
    corpus_close(other);
    corpus_close(corpus);
    names[1] = in_test_folder("none");
    assert_failed(corpus_open(&other, names, 3), ERR_DATA, "none.idx", "No such file");
}

// 3 sequences of 2^31 − 1 tokens each: token and byte numbers beyond 32 bits, in a file that takes no room.
static void counts_beyond_32_bits(void **state) {
    (void)state;
    const int64_t tokens = 3 * (int64_t)INT32_MAX;
    int fd = open(in_test_folder("s.bin"), O_WRONLY | O_CREAT, 0600);
    const uint16_t marks[2] = {11, 12};
    assert_int_equal(ftruncate(fd, 2 * tokens), 0);
    assert_int_equal(pwrite(fd, &marks[0], 2, 2 * (((int64_t)1 << 32) + 5)), 2);
    assert_int_equal(pwrite(fd, &marks[1], 2, 2 * (tokens - 1)), 2);
    close(fd);
    Index index = good_index(TOKEN_U16, 3, (const int32_t[]){INT32_MAX, INT32_MAX, INT32_MAX});
    index.bounds = 2; // one document
    index.first[1] = 3;
    char bytes[256];
    size_t n = put(bytes, 0, index.magic, 9);
    n = put(bytes, n, &index.version, 8);
    n = put(bytes, n, &index.type, 1);
    n = put(bytes, n, &index.sequences, 8);
    n = put(bytes, n, &index.bounds, 8);
    n = put(bytes, n, index.length, 12);
    n = put(bytes, n, index.offset, 24);
    n = put(bytes, n, index.first, 16);
    write_bytes(in_test_folder("s.idx"), bytes, n);
    Corpus *corpus;
    const char *name = in_test_folder("s");
    int32_t out[3];
    assert_int_equal(corpus_open(&corpus, &name, 1), OK);
    assert_int_equal(corpus_tokens(corpus), tokens);
    assert_int_equal(corpus_read(corpus, ((int64_t)1 << 32) + 4, 3, 100, out), OK);
    assert_memory_equal(out, ((const int32_t[]){0, 11, 0}), sizeof out);
    assert_int_equal(corpus_read(corpus, tokens - 3, 3, 100, out), OK);
    assert_memory_equal(out, ((const int32_t[]){0, 0, 12}), sizeof out);
    assert_failed(corpus_read(corpus, tokens - 1, 1, 12, out), ERR_DATA, "token 6442450940 is 12", "");
    corpus_close(corpus);
}

int main(void) {
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_setup, folder_teardown)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(reads_every_type),
        IN_FOLDER(wrong_ids_are_named),
        IN_FOLDER(damaged_header_is_named),
        IN_FOLDER(damaged_arrays_are_named),
        IN_FOLDER(damaged_files_are_named),
        IN_FOLDER(empty_shards_are_errors),
        IN_FOLDER(writer_and_reader_agree),
        IN_FOLDER(checksums_see_damage),
        IN_FOLDER(nothing_is_left_of_a_cancelled_writer),
        IN_FOLDER(corpus_joins_shards),
        IN_FOLDER(counts_beyond_32_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
