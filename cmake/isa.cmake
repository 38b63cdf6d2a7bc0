# The one list of CPU instruction sets and the flags of their files: src/cpu/isa/<isa>.cc or <isa>_<part>.cc.
set(QUIRE_ISAS scalar)
set(QUIRE_ISA_FLAGS_scalar "")
# The fuzz targets are about parsers; instrumented kernels would take most of their build.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND NOT QUIRE_FUZZ)
  list(APPEND QUIRE_ISAS avx2 avx512 avx512bf16)
  set(QUIRE_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
  set(QUIRE_ISA_FLAGS_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mfma -mf16c)
  set(QUIRE_ISA_FLAGS_avx512bf16 ${QUIRE_ISA_FLAGS_avx512} -mavx512bf16)
endif()
# Names that belong to another processor: their files are left out instead of being an error.
set(QUIRE_ISAS_KNOWN scalar avx2 avx512 avx512bf16 amx neon)

# Kernels must give the same bits on every path: no contraction, no reassociation. Floating-point traps are left out
# of account, which changes no value and lets selects become vector code. They are optimised even in
# dev, since the tests spend their time in them; sanitizer builds keep the level of the preset.
set(QUIRE_KERNEL_FLAGS -ffp-contract=off -fno-math-errno -fno-trapping-math)
if(NOT QUIRE_SANITIZE)
  list(APPEND QUIRE_KERNEL_FLAGS -O3)
endif()
# An ISA object may hold no weak symbol, and exception tables bring one. gcc 12's own AVX-512 headers warn
# about uninitialised values.
set(QUIRE_ISA_COMMON_FLAGS -fno-exceptions)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND QUIRE_ISA_COMMON_FLAGS -Wno-uninitialized -Wno-maybe-uninitialized)
endif()

# Sets the flags of the ISA sources and returns in `out` those that this processor family can have.
function(quire_isa_sources out)
  set(kept)
  foreach(file IN LISTS ARGN)
    get_filename_component(stem ${file} NAME_WE)
    string(REGEX REPLACE "_.*$" "" isa ${stem})
    if(isa IN_LIST QUIRE_ISAS)
      set_source_files_properties(${file} PROPERTIES
        COMPILE_OPTIONS "${QUIRE_KERNEL_FLAGS};${QUIRE_ISA_COMMON_FLAGS};${QUIRE_ISA_FLAGS_${isa}}"
        COMPILE_DEFINITIONS "QUIRE_ISA_NAME=${isa};QUIRE_ISA_IS_${isa}=1")
      list(APPEND kept ${file})
    elseif(NOT isa IN_LIST QUIRE_ISAS_KNOWN)
      message(FATAL_ERROR "${file}: '${isa}' is not an ISA of cmake/isa.cmake (${QUIRE_ISAS})")
    endif()
  endforeach()
  set(${out} ${kept} PARENT_SCOPE)
endfunction()
