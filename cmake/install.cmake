# Install rules, the find_package files and the pkg-config file.
include(CMakePackageConfigHelpers)
set(quire_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/quire)

install(TARGETS quire EXPORT quireTargets FILE_SET HEADERS)
if(QUIRE_HAS_ENGINE)
  install(TARGETS quire_engine EXPORT quireTargets)
endif()
if(QUIRE_HAS_CLI)
  install(TARGETS quire_command)
endif()
install(EXPORT quireTargets NAMESPACE quire:: DESTINATION ${quire_cmake_dir})
configure_package_config_file(cmake/quireConfig.cmake.in quireConfig.cmake INSTALL_DESTINATION ${quire_cmake_dir})
write_basic_package_version_file(quireConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/quireConfig.cmake ${PROJECT_BINARY_DIR}/quireConfigVersion.cmake
        DESTINATION ${quire_cmake_dir})

# The pkg-config file finds the prefix from its own place, so that an install tree can be moved.
file(RELATIVE_PATH QUIRE_PC_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" QUIRE_PC_PREFIX ${QUIRE_PC_PREFIX})
set(QUIRE_PC_LIBS_PRIVATE ${OpenMP_CXX_FLAGS})
if(QUIRE_HAS_CUDA)
  string(APPEND QUIRE_PC_LIBS_PRIVATE " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -lrt -ldl -lpthread")
endif()
configure_file(cmake/quire.pc.in quire.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/quire.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
