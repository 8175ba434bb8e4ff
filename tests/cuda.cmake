# The CUDA kernels compiled as C++ for the CPU (tests/cuda_emulation.h), on every machine, and held against the
# same tests as the CPU's kernels, and in bf16 against the CPU's kernels: test_cuda_*.c. That is no run on a GPU.
file(GLOB cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/cuda/*.cu)
set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX)
add_library(floe_cuda_emulation STATIC cuda_emulation.cc cuda_emulation_matmul.c ${PROJECT_SOURCE_DIR}/kernels/cuda/table.c
  ${PROJECT_SOURCE_DIR}/kernels/cuda/attention_choice.c ${PROJECT_SOURCE_DIR}/kernels/cuda/attention_rule.c
  ${PROJECT_SOURCE_DIR}/kernels/cuda/matmul_plan.c ${cuda_sources})
target_compile_definitions(floe_cuda_emulation PRIVATE FLOE_CUDA_EMULATION)
target_compile_options(floe_cuda_emulation PRIVATE
  "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include ${CMAKE_CURRENT_SOURCE_DIR}/cuda_emulation.h -Wno-unknown-pragmas>")
target_link_libraries(floe_cuda_emulation PUBLIC floe_core)

# NAME: test_NAME.c, with the emulated table in place of the CPU's.
foreach(name kernels kernels_attention kernels_loss kernels_norm kernels_route)
  floe_test_program(emulated_${name} test_${name}.c)
  target_compile_definitions(emulated_${name} PRIVATE FLOE_CUDA_EMULATION)
  target_link_libraries(emulated_${name} PRIVATE floe_cuda_emulation)
  add_test(NAME emulated_cuda_${name} COMMAND emulated_${name})
  set_tests_properties(emulated_cuda_${name} PROPERTIES LABELS unit TIMEOUT 300)
endforeach()
foreach(source ${unit_tests})
  get_filename_component(name ${source} NAME_WE)
  if(name MATCHES "^test_cuda_")
    target_compile_definitions(${name} PRIVATE FLOE_CUDA_EMULATION)
    target_link_libraries(${name} PRIVATE floe_cuda_emulation)
  endif()
endforeach()

# Plans of cuDNN are made without a GPU, on a driver that does nothing.
set_tests_properties(test_cudnn_plans PROPERTIES SKIP_RETURN_CODE 77)
target_link_libraries(test_cudnn_plans PRIVATE floe_cuda_emulation)
if(TARGET floe_CUDNN)
  add_library(fake_cuda_driver SHARED fake_cuda_driver.c)
  set_target_properties(fake_cuda_driver PROPERTIES LINK_OPTIONS -Wl,-soname,libcuda.so.1 NO_SONAME ON)
  target_compile_options(fake_cuda_driver PRIVATE -Wno-missing-prototypes -Wno-strict-prototypes)
  target_link_libraries(fake_cuda_driver PRIVATE ${CMAKE_DL_LIBS})
  add_dependencies(test_cudnn_plans fake_cuda_driver)
  target_link_libraries(test_cudnn_plans PRIVATE floe_CUDNN ${CMAKE_DL_LIBS})
  target_compile_definitions(test_cudnn_plans PRIVATE FAKE_CUDA_DRIVER="$<TARGET_FILE:fake_cuda_driver>")
endif()
