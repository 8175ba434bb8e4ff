// SPDX-License-Identifier: Apache-2.0
// tokenizer.json against the ids of the Python package tokenizers (tests/golden_tokenizer).
#include "data/pack.h"
#include "data/tokenizer.h"
#include "test_data_fixture.h"
#include <jansson.h>

#ifndef FLOE_PCRE2
static void library_is_named(void **state) {
    (void)state;
    Tokenizer *tokenizer;
    assert_failed(tokenizer_open(&tokenizer, "hf:x.json"), ERR_CONFIG, "hf:x.json: this build has no PCRE2",
                  "libpcre2-dev");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(library_is_named, folder_setup, folder_teardown)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
#define GOLDEN          TESTS_DIR "/golden_tokenizer/"

static Tokenizer *open_file(const char *path) {
    char name[1024];
    Tokenizer *tokenizer;
    snprintf(name, sizeof name, "hf:%s", path);
    if (tokenizer_open(&tokenizer, name) != OK) fail_msg("%s", status_text());
    return tokenizer;
}

static Tokenizer *open_golden(const char *kind) {
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s.json", kind);
    return open_file(path);
}

static Status try_open(const char *path) {
    char name[1024];
    Tokenizer *tokenizer;
    snprintf(name, sizeof name, "hf:%s", path);
    Status status = tokenizer_open(&tokenizer, name);
    if (status == OK)
        tokenizer_close(tokenizer);
    else
        assert_null(tokenizer);
    return status;
}

static void expect_text(const Tokenizer *tokenizer, const int32_t *tokens, int64_t count,
                        const char *expected, int64_t bytes) {
    int64_t decoded;
    char *text = tokenizer_decode(tokenizer, tokens, count, &decoded);
    if (decoded != bytes || memcmp(text, expected, (size_t)bytes) != 0)
        fail_msg("decoded \"%s\", expected \"%s\"", text, expected);
    free(text);
}

static void expect_round_trip(const Tokenizer *tokenizer, const char *text, int64_t bytes) {
    int32_t *tokens;
    int64_t count;
    assert_int_equal(tokenizer_encode(tokenizer, text, bytes, &tokens, &count), OK);
    expect_text(tokenizer, tokens, count, text, bytes);
    free(tokens);
}

static void expect_ids(const Tokenizer *tokenizer, const char *kind, const json_t *text, const json_t *ids) {
    int32_t *tokens;
    int64_t count;
    const char *data = json_string_value(text);
    int64_t bytes = (int64_t)json_string_length(text);
    if (tokenizer_encode(tokenizer, data, bytes, &tokens, &count) != OK) fail_msg("%s", status_text());
    for (int64_t i = 0; i < count && i < (int64_t)json_array_size(ids); i++)
        if (tokens[i] != json_integer_value(json_array_get(ids, (size_t)i)))
            fail_msg("%s: token %lld of \"%s\" is %d, expected %lld", kind, (long long)i, data, tokens[i],
                     (long long)json_integer_value(json_array_get(ids, (size_t)i)));
    assert_int_equal(count, json_array_size(ids));
    bool silent = strstr(data, "<|begin_of_text|>") || strstr(data, "<|end_of_text|>"); // bos and eos
    if (!silent && strcmp(kind, "space") != 0 && strcmp(kind, "dropped") != 0)
        expect_text(tokenizer, tokens, count, data, bytes);
    free(tokens);
}

static void ids_are_the_packages(void **state) {
    (void)state;
    json_t *cases = json_load_file(GOLDEN "cases.json", JSON_ALLOW_NUL, NULL), *lists;
    assert_non_null(cases);
    const json_t *texts = json_object_get(cases, "texts");
    const char *kind;
    int kinds = 0;
    json_object_foreach(json_object_get(cases, "ids"), kind, lists) {
        Tokenizer *tokenizer = open_golden(kind);
        assert_int_equal(json_array_size(lists), json_array_size(texts));
        for (int pass = 0; pass < 2; pass++) // the second time it is known which pieces are tokens
            for (size_t i = 0; i < json_array_size(lists); i++)
                expect_ids(tokenizer, kind, json_array_get(texts, i), json_array_get(lists, i));
        tokenizer_close(tokenizer);
        kinds++;
    }
    assert_int_equal(kinds, 7);
    json_decref(cases);
}

static void any_bytes_come_back(void **state) {
    (void)state;
    static const char *const kinds[] = {"gpt2", "llama3", "parts", "whole", "parted"};
    static const char broken[] = "ab\xff\xfe the\xc3 end\xe2\x82 \xed\xa0\x80 \xf4\x90\x80\x80\xf0\x9f\x98";
    enum { BYTES = 50000 };
    char *noise = malloc(BYTES);
    uint64_t seed = 7;
    for (int i = 0; i < BYTES; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        noise[i] = (char)(seed >> 40 & (i / 5000 % 2 ? 0xff : 0x7f));
    }
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        Tokenizer *tokenizer = open_golden(kinds[k]);
        expect_round_trip(tokenizer, broken, sizeof broken - 1);
        expect_round_trip(tokenizer, noise, BYTES);
        memset(noise, 0xff, 1000); // longer than a short piece
        expect_round_trip(tokenizer, noise, 1000);
        tokenizer_close(tokenizer);
    }
    free(noise);
}

// "reserved" is a token of its own when it is a piece of its own; a character before it would join the piece.
static bool joins_word(const Tokenizer *tokenizer, const char *character) {
    char text[32];
    int32_t *tokens;
    int64_t count;
    snprintf(text, sizeof text, "%sreserved", character);
    assert_int_equal(tokenizer_encode(tokenizer, text, (int64_t)strlen(text), &tokens, &count), OK);
    int32_t last = tokens[count - 1];
    free(tokens);
    assert_int_equal(tokenizer_encode(tokenizer, "reserved", 8, &tokens, &count), OK);
    assert_int_equal(count, 1);
    bool joins = last != tokens[0];
    free(tokens);
    return joins;
}

static void broken_bytes_stand_alone(void **state) {
    (void)state;
    static const char *const broken[] = {
        "\xff",         "\x80",         "\xc1\xbf",         "\xe0\x9f\xbf",
        "\xed\xa0\x80", "\xed\xbf\xbf", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80",
        "\xe2\x82",     "\xf0\x9f\x98", "\xf5\x80\x80\x80", "\xc3"};
    static const char *const good[] = {"-",
                                       "\xc2\x80",
                                       "\xe0\xa4\x81",
                                       "\xed\x9f\xbf",
                                       "\xee\x80\x80",
                                       "\xef\xbf\xbf",
                                       "\xf0\x90\x84\x80",
                                       "\xf4\x8f\xbf\xbf"};
    Tokenizer *tokenizer = open_golden("whole");
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++)
        assert_false(joins_word(tokenizer, broken[i]));
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) assert_true(joins_word(tokenizer, good[i]));
    tokenizer_close(tokenizer);
}

static void special_tokens(void **state) {
    (void)state;
    Tokenizer *tokenizer = open_golden("llama3");
    assert_int_equal(tokenizer_vocab(tokenizer), 427);
    assert_int_equal(tokenizer_bos(tokenizer), 420); // its template's
    assert_int_equal(tokenizer_eos(tokenizer), 421); // by its name
    assert_int_equal(tokenizer_pad(tokenizer), -1);
    const int32_t tokens[] = {420, 422, 424, 421, 427, -5, 426, 424};
    static const char text[] = "<|reserved|><|keep|>\xef\xbf\xbd\xef\xbf\xbd\xc2\xabraw\xc2\xbb\xf0\x9f\xa7"
                               "\xaa<|keep|>";
    expect_text(tokenizer, tokens, 8, text, sizeof text - 1);
    tokenizer_close(tokenizer);
}

// A golden file with one place changed, in the test's folder.
static const char *edited(const char *kind, const char *from, const char *to) {
    char path[512], *text;
    size_t bytes;
    snprintf(path, sizeof path, GOLDEN "%s.json", kind);
    assert_int_equal(file_read_all(path, &text, &bytes), OK);
    char *found = strstr(text, from);
    if (!found) fail_msg("%s has no %s", path, from);
    FILE *file = fopen(in_test_folder("tokenizer.json"), "wb");
    fwrite(text, 1, (size_t)(found - text), file);
    fputs(to, file);
    fputs(found + strlen(from), file);
    fclose(file);
    free(text);
    return in_test_folder("tokenizer.json");
}

static void expect_same(const Tokenizer *a, const char *path, const char *text) {
    Tokenizer *b = open_file(path);
    int32_t *tokens[2];
    int64_t count[2], bytes = (int64_t)strlen(text);
    assert_int_equal(tokenizer_encode(a, text, bytes, &tokens[0], &count[0]), OK);
    assert_int_equal(tokenizer_encode(b, text, bytes, &tokens[1], &count[1]), OK);
    assert_int_equal(count[0], count[1]);
    assert_memory_equal(tokens[0], tokens[1], (size_t)count[0] * sizeof **tokens);
    free(tokens[0]);
    free(tokens[1]);
    tokenizer_close(b);
}

// Older files lack some keys.
static void absent_keys_have_their_defaults(void **state) {
    (void)state;
    static const char text[] = "the  beginning of   'the return reserved";
    static const char *const without[][2] = {
        {"gpt2", ",\"use_regex\":true"},      {"gpt2", "\"type\":\"BPE\","},
        {"gpt2", ",\"ignore_merges\":false"}, {"gpt2", ",\"byte_fallback\":false"},
        {"llama3", ",\"invert\":false"},      {"space", "\"add_prefix_space\":true,"}};
    for (size_t i = 0; i < sizeof without / sizeof *without; i++) {
        Tokenizer *tokenizer = open_golden(without[i][0]);
        expect_same(tokenizer, edited(without[i][0], without[i][1], ""), text);
        tokenizer_close(tokenizer);
    }
    Tokenizer *tokenizer = open_golden("gpt2");
    expect_same(
        tokenizer,
        edited("gpt2", "\"normalizer\":null", "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[]}"),
        text);
    expect_same(tokenizer, edited("gpt2", "\"end_of_word_suffix\":null", "\"end_of_word_suffix\":\"\""),
                text);
    tokenizer_close(tokenizer);
}

static void configuration_beside_it(void **state) {
    (void)state;
    const char *path = edited("llama3", "\"version\"", "\"version\"");
    const char *config = in_test_folder("tokenizer_config.json");
    write_text(config, "{\"eos_token\": {\"content\": \"<|reserved|>\", \"lstrip\": false}, \"pad_token\": "
                       "\"<|keep|>\", \"bos_token\": null, \"model_max_length\": 1e30}");
    Tokenizer *tokenizer = open_file(path);
    assert_int_equal(tokenizer_bos(tokenizer), 420);
    assert_int_equal(tokenizer_eos(tokenizer), 422);
    assert_int_equal(tokenizer_pad(tokenizer), 424);
    tokenizer_close(tokenizer);
    write_text(config, "{\"bos_token\": \"<|keep|>\"}"); // so there is no eos
    tokenizer = open_file(path);
    assert_int_equal(tokenizer_bos(tokenizer), 424);
    assert_int_equal(tokenizer_eos(tokenizer), -1);
    tokenizer_close(tokenizer);
    write_text(config, "{\"eos_token\": \"</s>\"}");
    assert_failed(try_open(path), ERR_CONFIG, "tokenizer_config.json: eos_token = \"</s>\"",
                  "no such added token");
    write_text(config, "{\"eos_token\": ");
    assert_failed(try_open(path), ERR_CONFIG, "tokenizer_config.json:1: not JSON", "");
}

static void packing(void **state) {
    (void)state;
    const char *path = edited("gpt2", "\"version\"", "\"version\"");
    char name[1024];
    snprintf(name, sizeof name, "hf:%s", path);
    write_text(in_test_folder("a.jsonl"), "{\"text\": \"the end\"}\n{\"text\": \"x\"}\n");
    const char *input[] = {in_test_folder("a.jsonl")};
    const PackOptions options = {
        .input = input, .inputs = 1, .prefix = in_test_folder("out"), .tokenizer = name, .threads = 2};
    PackReport report;
    Shard *shard;
    if (pack_run(&options, &report) != OK) fail_msg("%s", status_text());
    assert_int_equal(report.documents, 2);
    assert_int_equal(shard_open(&shard, options.prefix), OK);
    int64_t tokens = shard_tokens(shard);
    int32_t *ids = malloc((size_t)tokens * sizeof *ids);
    assert_int_equal(shard_read(shard, 0, tokens, 427, ids), OK);
    int64_t second = shard_document_start(shard, 1);
    assert_int_equal(ids[second - 1], 421);
    assert_int_equal(ids[tokens - 1], 421);
    Tokenizer *tokenizer = open_file(path);
    expect_text(tokenizer, ids, tokens, "the endx", 8);
    tokenizer_close(tokenizer);
    shard_close(shard);
    write_text(in_test_folder("tokenizer_config.json"), "{\"bos_token\": \"<|begin_of_text|>\"}");
    assert_failed(pack_run(&options, &report), ERR_CONFIG, "no end-of-document", "eos_token");
    free(ids);
}

static void unknown_parts_are_named(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *a, *b;
    } change[] = {
        {"\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}", "normalizer = {\"type\":\"NFC\"}",
         "as it is"},
        {"\"version\":\"1.0\"", "\"version\":\"2.0\"", "version = \"2.0\"", ""},
        {"\"version\":\"1.0\"", "\"version\":\"1.0\",\"extra\":[1]", "extra = [1]", "unknown"},
        {"\"truncation\":null", "\"truncation\":{\"max_length\":5}", "truncation = {\"max_length\":5}",
         "null"},
        {"\"padding\":null", "\"padding\":{\"pad_id\":5}", "padding = {\"pad_id\":5}", "null"},
        {"\"type\":\"BPE\"", "\"type\":\"Unigram\"", "model.type = \"Unigram\"", "sentencepiece:FILE"},
        {"\"dropout\":null", "\"dropout\":0.1", "model.dropout = 0.1", "null"},
        {"\"byte_fallback\":false", "\"byte_fallback\":true", "model.byte_fallback = true",
         "sentencepiece:FILE"},
        {"\"end_of_word_suffix\":null", "\"end_of_word_suffix\":\"</w>\"",
         "model.end_of_word_suffix = \"</w>\"", ""},
        {"\"fuse_unk\":false", "\"fuse_unk\":false,\"new\":1", "model.new = 1", "unknown"},
        {"\"ignore_merges\":false", "\"ignore_merges\":3", "model.ignore_merges = 3", "true or false"},
        {"\"lstrip\":false", "\"lstrip\":true", "added_tokens[].lstrip", "<|begin_of_text|>"},
        {"\"single_word\":false", "\"single_word\":true", "added_tokens[].single_word", "<|begin_of_text|>"},
        {"\"id\":421", "\"id\":420", "added_tokens[] = {\"id\":420,\"content\":\"<|end_of_text|>\"",
         "contradicts"},
        {"\"id\":421", "\"id\":-1", "added_tokens[].id", "-1"},
        {"\"id\":421", "\"id\":99999999999", "added_tokens[].id", "99999999999"},
        {"\"content\":\"<|end_of_text|>\"", "\"content\":\"\"", "added_tokens[].content",
         "a text is expected"},
        {"\"Isolated\"", "\"MergedWithNext\"", "pre_tokenizer.behavior = \"MergedWithNext\"", "Isolated"},
        {"\"invert\":false", "\"invert\":true", "pre_tokenizer.invert = true", "Isolated"},
        {"{\"Regex\":", "{\"String\":", "pre_tokenizer.pattern.String", "unknown"},
        {"{\"type\":\"Split\"", "{\"type\":\"Digits\"", "pre_tokenizer.pretokenizers = {\"type\":\"Digits\"",
         "Split"},
        {"\"type\":\"ByteLevel\",\"add_prefix_space\":false",
         "\"type\":\"Metaspace\",\"add_prefix_space\":false",
         "pre_tokenizer.pretokenizers = {\"type\":\"Metaspace\"", "ByteLevel"},
        {"\"type\":\"ByteLevel\",\"add_prefix_space\":false",
         "\"type\":\"ByteLevel\",\"add_prefix_space\":true", "pre_tokenizer.add_prefix_space", "another"},
        {"\"type\":\"TemplateProcessing\"", "\"type\":\"BertProcessing\"",
         "post_processor = {\"type\":\"BertProcessing\"", ""},
        {"{\"SpecialToken\":{\"id\":\"<|begin_of_text|>\"", "{\"SpecialToken\":{\"id\":\"<s>\"",
         "post_processor.single", "<s>"},
        {"\"decoder\":{\"type\":\"ByteLevel\"", "\"decoder\":{\"type\":\"Fuse\"",
         "decoder = {\"type\":\"Fuse\"", ""},
        {"\"!\":0", "\"!\":1", "another token has this id", "model.vocab.\""},
        {"\"!\":0", "\"!\":\"0\"", "model.vocab.\"!\" = \"0\"", "id is expected"},
        {"\"\xc3\xbe\":", "\"qzx\":", "no token for byte 0xfe", "sentencepiece:FILE"},
        {"[\"a\",\"a\"]", "[\"a\",\"\"]", "model.merges[0] = [\"a\",\"\"]", "two texts"},
        {"[\"a\",\"a\"]", "[\"a\",\"~\"]", "model.merges[0] = [\"a\",\"~\"]", "model.vocab"},
        {"[\"a\",\"a\"]", "\"a  a\"", "model.merges[0] = \"a  a\"", "two texts"},
        {"[\"a\",\"a\"]", "[\"a\",\"a\",\"a\"]", "model.merges[0]", "two texts"},
    };
    for (size_t i = 0; i < sizeof change / sizeof *change; i++)
        assert_failed(try_open(edited("llama3", change[i].from, change[i].to)), ERR_CONFIG, change[i].a,
                      change[i].b);
    assert_failed(try_open("none/tokenizer.json"), ERR_CONFIG, "none/tokenizer.json: no such file", "");
    write_text(in_test_folder("x"), "[1]");
    assert_failed(try_open(in_test_folder("x")), ERR_CONFIG, "not a JSON object", "");
    assert_failed(try_open(edited("llama3", "\"version\"", "\"version\":\"1.0\",\"version\"")), ERR_CONFIG,
                  "tokenizer.json:1: not JSON", "version");
}

// llama3.json with another pattern.
static const char *with_pattern(const char *pattern) {
    const char *path = in_test_folder("tokenizer.json");
    json_t *root = json_load_file(GOLDEN "llama3.json", 0, NULL);
    assert_non_null(root);
    json_t *parts = json_object_get(json_object_get(root, "pre_tokenizer"), "pretokenizers");
    json_object_set_new(json_object_get(json_array_get(parts, 0), "pattern"), "Regex", json_string(pattern));
    assert_int_equal(json_dump_file(root, path, 0), 0);
    json_decref(root);
    return path;
}

// What means something else in the syntax that these files are written in, or is not known to mean the same.
static void unknown_patterns_are_named(void **state) {
    (void)state;
    static const char *const patterns[][2] = {
        {"\\w+|.", "\\w+|."},
        {"^a", "^a"},
        {"a$", "$"},
        {"a|.", "."},
        {"a\\p{Han}+", "\\p{Han}"},
        {"\\p{^L}", "\\p{^L}"},
        {"\\pL", "\\pL"},
        {"a{1,2}+", "{1,2}+"},
        {"a{2}?", "{2}?"},
        {"a{,2}", "{,2}"},
        {"[[:alpha:]]", "[:alp"},
        {"[a&&b]", "&&b]"},
        {"[]a]", "[]a]"},
        {"(*F)", "(*F)"},
        {"(?x:a)", "(?x:a)"},
        {"\\x41", "\\x41"},
        {"\\1", "\\1"},
        {"a\\", "\\"},
        {"[^]a]", "[^]a]"},
    };
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        char expected[64];
        snprintf(expected, sizeof expected, "is not supported: \"%s", patterns[i][1]);
        assert_failed(try_open(with_pattern(patterns[i][0])), ERR_CONFIG,
                      "pre_tokenizer.pattern.Regex: ", expected);
    }
    assert_failed(try_open(with_pattern("(a")), ERR_CONFIG, "Regex: (a is no pattern: ", "");
    assert_failed(try_open(with_pattern("[a")), ERR_CONFIG, "Regex: [a is no pattern: ", "");
    assert_failed(try_open(with_pattern("a*|b")), ERR_CONFIG, "Regex: a*|b is not supported",
                  "match nothing");
    assert_int_equal(try_open(with_pattern("(?>[\\S\\]-])++\\d{2,}|(?<!x)(?=y)[^\\s\\P{Lu}]|\\(")), OK);
}

static void damaged_files_do_not_crash(void **state) {
    (void)state;
    char *text;
    size_t bytes;
    int good = 0;
    uint64_t seed = 1;
    assert_int_equal(file_read_all(GOLDEN "llama3.json", &text, &bytes), OK);
    for (int i = 0; i < 2000; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        size_t at = (size_t)(seed >> 33) % (i % 2 ? bytes : 2600), end = i % 10 ? bytes : at;
        char before = text[at];
        text[at] = "\"{}[],:0-1na\\\xff"[seed >> 20 & 7];
        write_bytes(in_test_folder("tokenizer.json"), text, end);
        text[at] = before;
        Status status = try_open(in_test_folder("tokenizer.json"));
        assert_true(status == OK || status == ERR_CONFIG);
        good += status == OK;
    }
    assert_in_range(good, 1, 1900);
    free(text);
}

int main(void) {
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_setup, folder_teardown)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(ids_are_the_packages),
        IN_FOLDER(any_bytes_come_back),
        IN_FOLDER(broken_bytes_stand_alone),
        IN_FOLDER(special_tokens),
        IN_FOLDER(absent_keys_have_their_defaults),
        IN_FOLDER(configuration_beside_it),
        IN_FOLDER(packing),
        IN_FOLDER(unknown_parts_are_named),
        IN_FOLDER(unknown_patterns_are_named),
        IN_FOLDER(damaged_files_do_not_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#endif
