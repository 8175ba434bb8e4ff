// SPDX-License-Identifier: Apache-2.0
#include "core/yaml.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
// after the others
#include <cmocka.h>

static YamlNode *parse(const char *text) {
    YamlNode *root;
    Status status = yaml_parse(&root, text, strlen(text), "t.yaml");
    if (status != OK) print_error("%s\n", status_text());
    assert_int_equal(status, OK);
    return root;
}

static void expect_error(const char *text, const char *message) {
    YamlNode *root;
    assert_int_equal(yaml_parse(&root, text, strlen(text), "t.yaml"), ERR_CONFIG);
    assert_null(root);
    assert_string_equal(status_text(), message);
}

static void test_places(void **state) {
    (void)state;
    YamlNode *root = parse("# a comment\nmodel:\n    layers: 6\n    router: {force: none,\n             z: "
                           "1}\nlist: [a, 'b']\n");
    const YamlNode *layers = yaml_get(root, "model.layers"), *z = yaml_get(root, "model.router.z");
    assert_string_equal(layers->text, "6");
    assert_int_equal(layers->place.line, 3);
    assert_int_equal(layers->place.column, 13);
    assert_int_equal(layers->key_place.column, 5);
    assert_int_equal(z->place.line, 5);
    assert_int_equal(z->key_place.column, 14);
    assert_string_equal(yaml_get(root, "list.1")->text, "b");
    assert_true(yaml_get(root, "list.1")->quoted);
    assert_false(yaml_get(root, "list.0")->quoted);
    assert_null(yaml_get(root, "list.2"));
    assert_null(yaml_get(root, "model.layers.x"));
    yaml_free(root);
}

static void test_values(void **state) {
    (void)state;
    YamlNode *root = parse(
        "a: &x {p: 1, q: [1, 2]}\nb: *x\nc: null\nd: ~\ne:\nf: 'null'\ng: 30%\nh: sentencepiece:x.model\n");
    assert_true(yaml_equal(yaml_get(root, "a"), yaml_get(root, "b")));
    assert_true(yaml_is_null(yaml_get(root, "c")) && yaml_is_null(yaml_get(root, "d")));
    assert_true(yaml_is_null(yaml_get(root, "e")) && yaml_is_null(yaml_get(root, "nothing")));
    assert_false(yaml_is_null(yaml_get(root, "f")));
    assert_string_equal(yaml_get(root, "g")->text, "30%");
    assert_string_equal(yaml_get(root, "h")->text, "sentencepiece:x.model");
    yaml_free(root);
    root = parse("");
    assert_int_equal(root->kind, YAML_MAP);
    assert_int_equal(root->count, 0);
    yaml_free(root);
}

static void test_errors(void **state) {
    (void)state;
    expect_error("a: 1\nb: 2\na: 3\n", "t.yaml:3:1: error: the key comes twice, first in line 1: a");
    expect_error("a: {b: 1, b: 2}\n", "t.yaml:1:11: error: the key comes twice, first in line 1: b");
    expect_error("a: !!str 5\n", "t.yaml:1:10: error: tags (!…) are not understood here");
    expect_error("a: *b\n", "t.yaml:1:4: error: an alias before its anchor");
    expect_error("a: 1\n---\nb: 2\n", "t.yaml:2:1: error: a second document; one file holds one");
    expect_error("{a: 1}: 2\n", "t.yaml:1:1: error: a key must be a single word");
    YamlNode *root;
    const char *unfinished = "a: [1, 2\nb: 3\n";
    assert_int_equal(yaml_parse(&root, unfinished, strlen(unfinished), "t.yaml"), ERR_CONFIG);
    assert_memory_equal(status_text(), "t.yaml:", 7);
    char deep[100];
    memset(deep, '[', sizeof deep);
    assert_int_equal(yaml_parse(&root, deep, sizeof deep, "t.yaml"), ERR_CONFIG);
    assert_int_not_equal(yaml_load(&root, "/nowhere/x.yaml"), OK);
}

static void test_merge(void **state) {
    (void)state;
    YamlNode *into = parse("a: {x: 1, y: 2}\nl: [1, 2, 3]\nkeep: 1\n"),
             *from = parse("a: {y: 5, z: 6}\nl: [9]\n");
    yaml_merge(into, from);
    YamlNode *expected = parse("l: [9]\nkeep: 1\na: {z: 6, x: 1, y: 5}\n"); // the order does not count
    assert_true(yaml_equal(into, expected));
    assert_false(yaml_equal(into, from));
    yaml_free(into);
    yaml_free(from);
    yaml_free(expected);
}

static Status set(YamlNode *root, const char *path, const char *value) {
    YamlPlace place = {.file = "command line"};
    return yaml_set(root, path, place, yaml_scalar(value, false, place));
}

static void test_set(void **state) {
    (void)state;
    YamlNode *root = parse("a: {x: 1}\nl: [{u: 1}, {u: 2}]\nn: null\n");
    assert_int_equal(set(root, "a.x", "2"), OK);
    assert_int_equal(set(root, "b.c.d", "3"), OK);
    assert_int_equal(set(root, "l.1.u", "4"), OK);
    assert_int_equal(set(root, "n.m", "5"), OK);
    assert_int_equal(set(root, "l.2.u", "4"), ERR_CONFIG);
    assert_string_equal(status_text(), "'l.2.u': there is no item 2; the list has 2, numbered from 0");
    assert_int_equal(set(root, "a.x.y", "4"), ERR_CONFIG);
    assert_string_equal(status_text(), "'a.x.y': what stands before 'y' is a single value and has no keys");
    YamlNode *expected = parse("a: {x: 2}\nl: [{u: 1}, {u: 4}]\nn: {m: 5}\nb: {c: {d: 3}}\n");
    assert_true(yaml_equal(root, expected));
    yaml_free(root);
    yaml_free(expected);
}

static void test_emit(void **state) {
    (void)state;
    const char *text = "a:\n    x: 1\n    y: [1, 2]\nl:\n  - {u: 30%, m: {p: 0.5}}\n  - {u: 100%}\ns: \"a: "
                       "b\"\nq: \"6\"\ne: \"\"\nn: null\n";
    YamlNode *root = parse(text);
    char *out = yaml_emit(root, false);
    assert_string_equal(out, text);
    YamlNode *again = parse(out);
    assert_true(yaml_equal(root, again));
    free(out);
    out = yaml_emit(yaml_get(root, "a"), true);
    assert_string_equal(out, "x: 1                                        # t.yaml:2\n"
                             "y: [1, 2]                                   # t.yaml:3\n");
    free(out);
    yaml_free(root);
    yaml_free(again);
    root =
        parse("a: \"tab\\tquote\\\" back\\\\ line\\n\"\nb: ' x '\nc: '- y'\nd: '#'\nf: 'null'\ng: 'a #b'\n");
    out = yaml_emit(root, false);
    again = parse(out);
    assert_true(yaml_equal(root, again));
    free(out);
    yaml_free(root);
    yaml_free(again);
}

static void test_json(void **state) {
    (void)state;
    YamlNode *root =
        parse("i: 9007199254740993\nf: 1.0e-3\nb: true\nn: null\ns: 30%\nq: '5'\nx: -a\nl: [1, a]\n");
    json_t *json = yaml_json(root);
    assert_int_equal(json_integer_value(json_object_get(json, "i")), 9007199254740993);
    assert_true(json_real_value(json_object_get(json, "f")) == 1.0e-3);
    assert_true(json_is_true(json_object_get(json, "b")) && json_is_null(json_object_get(json, "n")));
    assert_string_equal(json_string_value(json_object_get(json, "s")), "30%");
    assert_string_equal(json_string_value(json_object_get(json, "q")), "5");
    assert_true(json_is_array(json_object_get(json, "l")));
    json_decref(json);
    yaml_free(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places), cmocka_unit_test(test_values), cmocka_unit_test(test_errors),
        cmocka_unit_test(test_merge),  cmocka_unit_test(test_set),    cmocka_unit_test(test_emit),
        cmocka_unit_test(test_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
