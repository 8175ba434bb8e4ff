// SPDX-License-Identifier: Apache-2.0
#include "data/pack.h"
#include "data/text_files.h"
#include "data/tokenizer.h"
#include "test_data_fixture.h"
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

static void write_gzip(const char *path, const char *text) {
    gzFile file = gzopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(gzwrite(file, text, (unsigned)strlen(text)), (int)strlen(text));
    assert_int_equal(gzclose(file), Z_OK);
}

static Status pack(const char *const input[], int inputs, const char *tokenizer, int threads,
                   PackReport *report) {
    const PackOptions options = {.input = input,
                                 .inputs = inputs,
                                 .prefix = in_test_folder("out"),
                                 .tokenizer = tokenizer,
                                 .threads = threads};
    return pack_run(&options, report);
}

// The shard's documents, each followed by "|".
static char *unpacked(const char *name) {
    Shard *shard;
    Tokenizer *tokenizer;
    if (shard_open(&shard, in_test_folder("out")) != OK) fail_msg("%s", status_text());
    assert_int_equal(tokenizer_open(&tokenizer, name), OK);
    int64_t tokens = shard_tokens(shard), used = 0;
    char *all = calloc((size_t)tokens * 64 + 1, 1);
    int32_t *ids = malloc((size_t)tokens * sizeof *ids);
    assert_int_equal(shard_read(shard, 0, tokens, tokenizer_vocab(tokenizer), ids), OK);
    for (int64_t d = 0; d < shard_documents(shard); d++) {
        int64_t first = shard_document_start(shard, d), end = shard_document_start(shard, d + 1), bytes;
        assert_int_equal(ids[end - 1], tokenizer_eos(tokenizer));
        char *text = tokenizer_decode(tokenizer, ids + first, end - first, &bytes);
        memcpy(all + used, text, (size_t)bytes);
        used += bytes;
        all[used++] = '|';
        free(text);
    }
    free(ids);
    tokenizer_close(tokenizer);
    shard_close(shard);
    return all;
}

static void expect_unpacked(const char *name, const char *expected) {
    char *text = unpacked(name);
    assert_string_equal(text, expected);
    free(text);
}

static void bytes_are_ids(void **state) {
    (void)state;
    Tokenizer *tokenizer;
    assert_int_equal(tokenizer_open(&tokenizer, "bytes"), OK);
    assert_int_equal(tokenizer_vocab(tokenizer), 259);
    assert_int_equal(tokenizer_bos(tokenizer), 256);
    assert_int_equal(tokenizer_eos(tokenizer), 257);
    assert_int_equal(tokenizer_pad(tokenizer), 258);
    char every[256];
    for (int i = 0; i < 256; i++) every[i] = (char)i;
    int32_t *tokens;
    int64_t count, bytes;
    assert_int_equal(tokenizer_encode(tokenizer, every, 256, &tokens, &count), OK);
    assert_int_equal(count, 256);
    for (int i = 0; i < 256; i++) assert_int_equal(tokens[i], i);
    char *text = tokenizer_decode(tokenizer, tokens, count, &bytes);
    assert_int_equal(bytes, 256);
    assert_memory_equal(text, every, 256);
    free(text);
    free(tokens);
    text = tokenizer_decode(tokenizer, (const int32_t[]){256, 'h', 'i', 258, 259, -1, '!', 257}, 8, NULL);
    assert_string_equal(text, "hi\xef\xbf\xbd\xef\xbf\xbd!");
    free(text);
    tokenizer_close(tokenizer);
    assert_failed(tokenizer_open(&tokenizer, "byte"), ERR_CONFIG, "tokenizer byte: unknown",
                  "sentencepiece:");
    assert_null(tokenizer);
}

static void packs_files_and_folders(void **state) {
    (void)state;
    PackReport report;
    assert_int_equal(mkdir(in_test_folder("in"), 0700), 0);
    assert_int_equal(mkdir(in_test_folder("in/b"), 0700), 0);
    assert_int_equal(mkdir(in_test_folder("in/.git"), 0700), 0);
    write_text(in_test_folder("in/c.txt"), "last\n");
    write_text(in_test_folder("in/b/x.py"), "x = 1\n");
    write_text(in_test_folder("in/b/empty.md"), "");
    write_bytes(in_test_folder("in/b/y.bin"), "a\0b", 3);
    write_bytes(in_test_folder("in/b/z.dat"), "\x01\x02\xff\xfe\x03", 5);
    write_text(in_test_folder("in/.git/config"), "hidden");
    write_text(in_test_folder("in/a.jsonl"), "{\"text\": \"one\\u00e9\"}\n\n{\"id\": 3, \"text\": "
                                             "\"two\\n\"}\r\n{\"text\": \"\"}\n{\"text\": \"three\"}");
    write_gzip(in_test_folder("in/d.txt.gz"), "zipped");
    write_gzip(in_test_folder("in/e.jsonl.gz"), "{\"text\": \"rec\"}\n");
    assert_int_equal(symlink(in_test_folder("in"), in_test_folder("in/b/loop")), 0);
    write_text(in_test_folder("alone"), "first");
    const char *input[] = {in_test_folder("alone"), in_test_folder("in/")};
    log_start(0, LOG_ERROR);
    assert_int_equal(pack(input, 2, "bytes", 3, &report), OK);
    expect_unpacked("bytes", "first|one\xc3\xa9|two\n|three|x = 1\n|last\n|zipped|rec|");
    assert_int_equal(report.documents, 8);
    assert_int_equal(report.skipped, 4); // empty, y.bin, z.dat, loop
    assert_int_equal(report.files, 9);
    assert_int_equal(report.bytes_done, report.bytes);
}

// More chunks than there is room for in flight; the result does not depend on the threads.
static void order_is_kept(void **state) {
    (void)state;
    PackReport report;
    FILE *file = fopen(in_test_folder("many.jsonl"), "w");
    size_t size = 0;
    char *expected = malloc(64 << 20);
    for (int i = 0; i < 40000; i++) {
        int repeat = (int)((unsigned)i * 2654435761u % 97);
        fprintf(file, "{\"text\": \"%d ", i);
        size += (size_t)sprintf(expected + size, "%d ", i);
        for (int j = 0; j < repeat; j++) {
            fputs("abcdefgh", file);
            size += (size_t)sprintf(expected + size, "abcdefgh");
        }
        fputs("\"}\n", file);
        expected[size++] = '|';
    }
    expected[size] = 0;
    fclose(file);
    const char *input[] = {in_test_folder("many.jsonl")};
    for (int threads = 1; threads <= 4; threads += 3) {
        assert_int_equal(pack(input, 1, "bytes", threads, &report), OK);
        expect_unpacked("bytes", expected);
        assert_int_equal(report.documents, 40000);
    }
    free(expected);
}

static void bad_input_is_named(void **state) {
    (void)state;
    PackReport report;
    int exists;
    FILE *file = fopen(in_test_folder("bad.jsonl"), "w");
    for (int i = 1; i < 30001; i++)
        fprintf(file, i == 29876 ? "{\"text\": \"no end\n" : "{\"text\": \"%0100d\"}\n", i);
    fclose(file);
    const char *input[] = {in_test_folder("bad.jsonl")};
    assert_failed(pack(input, 1, "bytes", 2, &report), ERR_DATA, "bad.jsonl:29876: not JSON", "text field");
    write_text(input[0], "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n");
    assert_failed(pack(input, 1, "bytes", 2, &report), ERR_DATA, "bad.jsonl:2: no string field \"text\"", "");
    write_text(input[0], "\n[1]\n");
    assert_failed(pack(input, 1, "bytes", 1, &report), ERR_DATA, "bad.jsonl:2: no string field", "");
    write_bytes(input[0], "{\"text\": \"a\"}\n\x80\x81", 16);
    assert_failed(pack(input, 1, "bytes", 1, &report), ERR_DATA, "bad.jsonl:2: not JSON", "byte 0x80");
    write_text(input[0], "\n  \n{\"text\": \"\"}");
    assert_failed(pack(input, 1, "bytes", 1, &report), ERR_DATA, "hold no text", "");
    input[0] = in_test_folder("none.txt");
    assert_failed(pack(input, 1, "bytes", 1, &report), ERR_CONFIG, "none.txt: No such file", "");
    input[0] = in_test_folder("binary");
    write_bytes(input[0], "a\0b", 3);
    assert_failed(pack(input, 1, "bytes", 1, &report), ERR_DATA, "binary: not text", "");
    input[0] = in_test_folder("t.gz");
    write_text(input[0], "not compressed");
    assert_failed(pack(input, 1, "bytes", 1, &report), ERR_DATA, "t.gz is not gzip data", "");
    char text[4001];
    for (int i = 0; i < 4000; i++) text[i] = (char)('a' + ((unsigned)i * 2654435761u >> 17) % 26);
    text[4000] = 0;
    write_gzip(input[0], text);
    assert_int_equal(truncate(input[0], 300), 0);
    assert_failed(pack(input, 1, "bytes", 1, &report), ERR_DATA,
                  "t.gz: the gzip data is damaged or truncated", "ends early");
    write_gzip(input[0], text);
    file = fopen(input[0], "r+b");
    fseek(file, 100, SEEK_SET);
    fputs("damaged", file);
    fclose(file);
    assert_failed(pack(input, 1, "bytes", 1, &report), ERR_DATA, "t.gz: the gzip data is damaged", "");
    for (int i = 0; i < 4; i++) {
        static const char *const names[] = {"out.bin", "out.idx", "out.bin.tmp", "out.idx.tmp"};
        assert_int_equal(file_exists(in_test_folder(names[i]), &exists), OK);
        assert_false(exists);
    }
}

static void a_stop_writes_nothing(void **state) {
    (void)state;
    static volatile sig_atomic_t stop = 1;
    write_text(in_test_folder("a"), "text");
    const char *input[] = {in_test_folder("a")};
    PackReport report;
    int exists;
    const PackOptions options = {.input = input,
                                 .inputs = 1,
                                 .prefix = in_test_folder("out"),
                                 .tokenizer = "bytes",
                                 .threads = 2,
                                 .stop = &stop};
    assert_failed(pack_run(&options, &report), ERR_RUNTIME, "interrupted", "nothing was written");
    assert_int_equal(file_exists(in_test_folder("out.bin.tmp"), &exists), OK);
    assert_false(exists);
}

static const char prose[] = "In the beginning was the word, and the word was long.\n"
                            "    def indented(self):\n\treturn  two  spaces\n\n"
                            "Na\xc3\xafve caf\xc3\xa9 \xe2\x82\xac 12345 \xf0\x9f\x90\xb8 end.  \n";

static void write_training_text(const char *path) {
    FILE *file = fopen(path, "w");
    for (int i = 0; i < 400; i++)
        fprintf(file, "line %d: the word of the beginning, indented and returned\n", i * i);
    fputs(prose, file);
    fclose(file);
}

static void sentencepiece_round_trip(void **state) {
    (void)state;
#ifndef FLOE_SENTENCEPIECE
    Tokenizer *none;
    assert_failed(tokenizer_open(&none, "sentencepiece:x.model"), ERR_CONFIG, "no SentencePiece",
                  "libsentencepiece-dev");
    skip();
#else
    char name[256], first[128], second[128];
    snprintf(first, sizeof first, "%s/m.model", test_folder);
    snprintf(second, sizeof second, "%s/n.model", test_folder);
    snprintf(name, sizeof name, "sentencepiece:%s", first);
    const char *input[] = {in_test_folder("text.txt")};
    write_training_text(input[0]);
    if (tokenizer_train(input, 1, first, 400) != OK) fail_msg("%s", status_text());
    assert_int_equal(tokenizer_train(input, 1, second, 400), OK);
    char *a, *b;
    size_t a_bytes, b_bytes;
    assert_int_equal(file_read_all(first, &a, &a_bytes), OK);
    assert_int_equal(file_read_all(second, &b, &b_bytes), OK);
    assert_int_equal(a_bytes, b_bytes);
    assert_memory_equal(a, b, a_bytes);
    free(a);
    free(b);
    Tokenizer *tokenizer;
    if (tokenizer_open(&tokenizer, name) != OK) fail_msg("%s", status_text());
    assert_int_equal(tokenizer_vocab(tokenizer), 400);
    assert_int_equal(tokenizer_bos(tokenizer), 1);
    assert_int_equal(tokenizer_eos(tokenizer), 2);
    assert_int_equal(tokenizer_pad(tokenizer), 3);
    int32_t *tokens;
    int64_t count;
    assert_int_equal(tokenizer_encode(tokenizer, prose, (int64_t)strlen(prose), &tokens, &count), OK);
    assert_true(count < (int64_t)strlen(prose) * 3 / 4); // it has learned something
    char *text = tokenizer_decode(tokenizer, tokens, count, NULL);
    assert_string_equal(text, prose);
    free(text);
    text = tokenizer_decode(tokenizer, (const int32_t[]){1, tokens[0], 2, 3, 400}, 5, NULL);
    assert_int_equal(strlen(text) >= 4 && strcmp(text + strlen(text) - 3, "\xef\xbf\xbd") == 0, 1);
    free(text);
    free(tokens);
    tokenizer_close(tokenizer);

    PackReport report;
    write_text(in_test_folder("text.txt"), prose);
    assert_int_equal(pack(input, 1, name, 2, &report), OK);
    char expected[sizeof prose + 1];
    snprintf(expected, sizeof expected, "%s|", prose);
    expect_unpacked(name, expected);
#endif
}

static void bad_models_are_named(void **state) {
    (void)state;
#ifndef FLOE_SENTENCEPIECE
    skip();
#else
    Tokenizer *tokenizer;
    char name[256];
    snprintf(name, sizeof name, "sentencepiece:%s/m.model", test_folder);
    assert_failed(tokenizer_open(&tokenizer, name), ERR_CONFIG, "m.model: no such SentencePiece model",
                  "floe data tokenizer");
    write_text(in_test_folder("m.model"), "this is no model");
    assert_failed(tokenizer_open(&tokenizer, name), ERR_CONFIG, "m.model is not a SentencePiece model", "");
    const char *input[] = {in_test_folder("text.txt")};
    write_training_text(input[0]);
    int exists;
    assert_failed(tokenizer_train(input, 1, in_test_folder("x.model"), 260), ERR_CONFIG,
                  "--vocab 260 is too small", "");
    assert_failed(tokenizer_train(input, 1, in_test_folder("x.model"), 100000), ERR_CONFIG,
                  "cannot train 100000 pieces", "--vocab");
    assert_failed(tokenizer_train(input, 1, in_test_folder("x.model"), 270), ERR_CONFIG,
                  "cannot train 270 pieces", "--vocab");
    assert_int_equal(file_exists(in_test_folder("x.model"), &exists), OK);
    assert_false(exists);
#endif
}

int main(void) {
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_setup, folder_teardown)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(bytes_are_ids),         IN_FOLDER(packs_files_and_folders),
        IN_FOLDER(order_is_kept),         IN_FOLDER(bad_input_is_named),
        IN_FOLDER(a_stop_writes_nothing), IN_FOLDER(sentencepiece_round_trip),
        IN_FOLDER(bad_models_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
